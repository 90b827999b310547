"""The training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import save_adapter
from ..errors import LivePhotoError
from ..files import atomic_path
from ..schedule import add_noise, clean_and_noise
from .batches import Batches
from .config import RunConfig
from .model import TrainingModel, kept_at

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900, 980)
STATE = "state.pt"


def learning_rate(step: int, run: RunConfig) -> float:
    """The factor on the learning rate: a linear warm-up, level, and from `decay_from` of the run a cosine down to 5 %."""
    rise = min(1.0, (step + 1) / max(1, run.warmup))
    start = run.decay_from * run.steps
    if step < start or run.decay_from >= 1:
        return rise
    return rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, run.steps - start))))


def parameter_groups(model: TrainingModel, run: RunConfig) -> list[dict[str, Any]]:
    """Optimizer groups: one for each learning-rate factor."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.trained().items():
        factor = next((f for start, f in run.rate_factors.items() if name.startswith(start)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": p, "lr": run.learning_rate * f, "factor": f} for f, p in groups.items()]


class Average:
    """Exponential moving average of named parameters (EMA), with a warm-up so that the random start is soon forgotten."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.nn.Parameter], step: int) -> None:
        """Move towards the parameters after optimizer step `step`."""
        decay = min(self.decay, (step + 1) / (step + 10))
        names = list(self.values)
        torch._foreach_lerp_([self.values[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)


def save_state(folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, average: Average, step: int) -> None:
    """Everything a resumed run needs, whole or not at all. Random numbers are functions of the step and need no state."""
    state = {
        "step": step,
        "model": {name: p.detach() for name, p in model.trained().items()},
        "average": average.values,
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(folder / STATE) as temporary:
        torch.save(state, temporary)


def load_state(folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, average: Average) -> int:
    """Restore what `save_state` wrote; returns the number of steps done.

    Raises:
        LivePhotoError: there is no state, it cannot be read, or it is of another model.
    """
    path = folder / STATE
    if not path.is_file():
        raise LivePhotoError(f"there is nothing to resume: {path} does not exist; start without --resume")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise LivePhotoError(f"{path} cannot be read ({type(error).__name__}): delete it and start without --resume") from error
    trained = model.trained()
    if set(trained) != set(state["model"]):
        raise LivePhotoError(f"{path} is of another model than the config describes: resume with the config it was started with")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["model"][name])
    for name, value in average.values.items():
        value.copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


@torch.no_grad()
def validation_errors(model: TrainingModel, batches: Batches, indices: list[int], timesteps: tuple[int, ...]) -> dict[str, float]:
    """Mean square error of the predicted latents x_0 at fixed timesteps on held-out clips, and that of repeating the reference.

    A model that learns motion falls below "repeat" at high timesteps; one that does not, stays above it.
    """
    errors = {}
    for timestep in timesteps:
        batch = batches.fixed(indices, timestep).to(model.alphas.device)
        kept = kept_at(model.alphas, batch.timesteps)
        noisy = add_noise(batch.latents, batch.noise, kept)
        output = model.predict(batch, noisy, batch.latents[:, 0])
        found, _ = clean_and_noise(noisy, output.float(), kept, model.prediction)
        errors[f"x0_{timestep}"] = float((found - batch.latents).square().mean())
    errors["repeat"] = float((batch.latents[:, :1] - batch.latents).square().mean())
    return errors


class AveragedWeights:
    """Within this context the model carries the averaged weights."""

    def __init__(self, model: TrainingModel, average: Average):
        self.model, self.average = model, average

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.model.trained().items()}
        self._load(self.average.values)

    def __exit__(self, *exception: object) -> None:
        self._load(self.kept)

    @torch.no_grad()
    def _load(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.trained().items():
            parameter.copy_(values[name])


def export(model: TrainingModel, folder: Path, thresholds: tuple[float, ...]) -> None:
    """Write the adapter and, where the base trained too, its UNet and text encoder, as fp16."""
    config = replace(model.adapter.config, ssim_thresholds=tuple(thresholds))
    model.adapter.config = config
    save_adapter(model.adapter, folder / "adapter.safetensors", dtype=torch.float16)
    if any(p.requires_grad for p in model.unet.parameters()):
        for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder)):
            half = type(part).from_config(part.config) if name == "unet" else type(part)(part.config)
            half.load_state_dict(part.state_dict())
            half.half().save_pretrained(folder / name)


def fit(
    model: TrainingModel,
    batches: Batches,
    held_out: list[int],
    run: RunConfig,
    resume: bool,
    sample: Callable[[TrainingModel, int], object],
) -> None:
    """Train to `run.steps`, logging, validating, sampling and saving as the run says.

    `sample(model, step)` is called with the averaged weights every `run.sample_every` steps.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    folder = Path(run.out)
    accelerator = Accelerator(mixed_precision=run.mixed_precision, gradient_accumulation_steps=run.accumulate)
    share = run.batch // run.accumulate // accelerator.num_processes
    if share * run.accumulate * accelerator.num_processes != run.batch:
        raise LivePhotoError(
            f"batch {run.batch} cannot be shared by {accelerator.num_processes} processes and {run.accumulate} accumulated parts"
        )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        parameters = sum(p.numel() for p in model.trained().values())
        print(f"{accelerator.num_processes} processes, {share} clips each, {parameters:,} parameters")
    if run.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    model.train()
    # thin convolutions run faster so, on a CPU and on a GPU
    model.unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(model, run), betas=(0.9, 0.99), weight_decay=run.weight_decay)
    model.to(accelerator.device)
    average = Average(model.trained(), run.ema)
    done = load_state(folder, model, optimizer, average) if resume else 0
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    writer = SummaryWriter(str(folder / "log")) if accelerator.is_main_process else None
    bar = tqdm(range(done, run.steps), initial=done, total=run.steps, disable=not accelerator.is_main_process, desc="training")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * group["factor"] * learning_rate(step, run)
        total = 0.0
        for part in range(run.accumulate):
            first = (part * accelerator.num_processes + accelerator.process_index) * share
            batch = batches.step(step, range(first, first + share)).to(accelerator.device)
            with accelerator.accumulate(wrapped):
                loss = wrapped(batch).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients and run.clip_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), run.clip_gradients)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        average.update(model.trained(), step)
        now = step + 1
        if writer and (now % 20 == 0 or now == run.steps):
            value = float(total) / run.accumulate
            bar.set_postfix(loss=f"{value:.4f}")
            writer.add_scalar("loss", value, now)
            writer.add_scalar("learning rate", run.learning_rate * learning_rate(step, run), now)
        last = now == run.steps
        if accelerator.is_main_process and (last or now % run.save_every == 0):
            save_state(folder, model, optimizer, average, now)
        if writer and held_out and (last or now % run.validate_every == 0):
            with AveragedWeights(model, average):
                model.eval()
                errors = validation_errors(model, batches, held_out, VALIDATION_TIMESTEPS)
                model.train()
            for name, value in errors.items():
                writer.add_scalar(f"validation/{name}", value, now)
            tqdm.write(json.dumps({"step": now, **{k: round(v, 4) for k, v in errors.items()}}))
        if accelerator.is_main_process and held_out and run.sample_every and now % run.sample_every == 0:
            with AveragedWeights(model, average):
                model.eval()
                sample(model, now)
                model.train()
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with AveragedWeights(model, average):
            export(model, folder, batches.thresholds)
    if writer:
        writer.close()
