"""The training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..base import Base
from ..base_write import save_base
from ..checkpoint import read_metadata, save_adapter
from ..config import to_json
from ..errors import LivePhotoError, first_line
from ..files import atomic_parts, atomic_path, remove_leftovers
from ..schedule import add_noise, clean_and_noise
from .batches import Batches, one_ahead
from .config import RunConfig, without_folders
from .log import TrainingLog
from .model import TrainingModel, kept_at
from .muon import MuonAdamW, is_hidden_matrix

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900, 980)
STATE, ADAPTER = "state.pt", "adapter.safetensors"
# what a resumed run must share with its start, for the weights to be those of an unbroken run; rates and lengths may change
FIXED_SETTINGS = (
    "base",
    "freeze_base",
    "batch",
    "optimizer",
    "weight_decay",
    "rate_factors",
    "text_drop",
    "frames_per_clip",
    "motion_weight",
    "first_frame_weight",
    "padding_penalty",
    "word_penalty",
    "timestep_shift",
    "pure_noise",
    "own_guesses",
    "seed",
)
FIXED_DATA = ("held_out", "least_level", "words", "repeats", "unguessed", "fine_levels")


def learning_rate(step: int, run: RunConfig) -> float:
    """The factor on the learning rate: a linear warm-up, level, and from `decay_from` of the run a cosine down to 5 %."""
    rise = min(1.0, (step + 1) / max(1, run.warmup))
    start = run.decay_from * run.steps
    if step < start or run.decay_from >= 1:
        return rise
    return rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, run.steps - start))))


def parameter_groups(model: TrainingModel, run: RunConfig) -> list[dict[str, Any]]:
    """Optimizer groups: one for each learning-rate factor, and for what Muon takes of its parameters."""
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.trained().items():
        factor = next((f for start, f in run.rate_factors.items() if name.startswith(start)), 1.0)
        orthogonal = run.optimizer == "muon" and is_hidden_matrix(name, parameter)
        groups.setdefault((factor, orthogonal), []).append(parameter)
    return [
        {"params": p, "lr": run.learning_rate * factor, "factor": factor, "orthogonal": orthogonal}
        for (factor, orthogonal), p in groups.items()
    ]


def make_optimizer(model: TrainingModel, run: RunConfig, device: torch.device) -> MuonAdamW:
    """The run's optimizer of all that trains on a device."""
    # one pass over a weight and its moments: the passes of a plain AdamW are a good part of a step on a CPU
    fused = device.type in ("cpu", "cuda")
    return MuonAdamW(parameter_groups(model, run), betas=(0.9, 0.99), weight_decay=run.weight_decay, fused=fused)


class Average:
    """Exponential moving average of named parameters (EMA), with a warm-up so that the random start is soon forgotten."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.nn.Parameter], step: int) -> None:
        """Move towards the parameters after optimizer step `step`."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in self.values.items():
            value.lerp_(parameters[name], 1 - decay)


def settings_of(run: RunConfig) -> dict[str, Any]:
    """The run's settings as plain values, folders and files by their last name: those differ from machine to machine."""
    return json.loads(json.dumps(without_folders(asdict(run))))


def fixed_settings(run: RunConfig, model: TrainingModel, batches: Batches) -> dict[str, Any]:
    """What must not change when a run is resumed, by name."""
    values = settings_of(run)
    return {
        **{name: values[name] for name in FIXED_SETTINGS},
        # which part of the clips is learnt; where they came from changes nothing
        **{f"data.{name}": values["data"][name] for name in FIXED_DATA},
        "the clips": batches.clips.digest(),
        "number of clips": len(batches.indices),
        **{f"adapter.{name}": value for name, value in json.loads(to_json(model.adapter.config)).items()},
    }


def save_state(
    folder: Path,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    average: Average,
    step: int,
    settings: dict[str, Any],
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Everything a resumed run needs, whole or not at all. Random numbers are functions of the step and need no state.

    Raises:
        LivePhotoError: the file cannot be written (no permission, a full disk).
    """
    state = {
        "step": step,
        "model": {name: p.detach() for name, p in model.trained().items()},
        "average": average.values,
        "optimizer": optimizer.state_dict(),
        "settings": json.dumps(settings),
    }
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    with atomic_path(folder / STATE) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch's zip writer raises over the file's own error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(
    folder: Path,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    average: Average,
    settings: dict[str, Any],
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Restore what `save_state` wrote; returns the number of steps done.

    Raises:
        LivePhotoError: there is no state, it cannot be read, or it is of another model or run; nothing is changed then.
    """
    path = folder / STATE
    if not path.is_file():
        raise LivePhotoError(f"there is nothing to resume: {path} does not exist; start without --resume")
    try:
        # mapped: processes on one machine share what they read
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise LivePhotoError(f"{path} cannot be read ({type(error).__name__}): delete it and start without --resume") from error
    try:
        problem = _mismatch(state, model, optimizer, settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LivePhotoError(f"{path} is no whole training state: delete it and start without --resume") from error
    if problem:
        raise LivePhotoError(f"{path} {problem}: resume with the config it was started with, or give another out folder")
    with torch.no_grad():
        for name, parameter in model.trained().items():
            parameter.copy_(state["model"][name])
            average.values[name].copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    for moments in optimizer.state.values():
        # on a CPU they are still the file's, which Windows would not let be replaced
        moments.update({name: value.clone() for name, value in moments.items()})
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return state["step"]


def _mismatch(state: dict[str, Any], model: TrainingModel, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> str:
    """Why a state cannot be resumed from, empty if it can; a KeyError or the like where it is no such state at all.

    Settings are compared where both sides know them: a state of an earlier version has fewer, or none.
    """
    saved = json.loads(state.get("settings", "{}"))
    if saved:
        # what runs did before there were these settings: whole levels, own noise for each frame, looks round the picture's middle
        shares = ("pure_noise", "own_guesses", "adapter.shared_noise", "adapter.shared_noise_still")
        saved = {"data.fine_levels": False, **dict.fromkeys(shares, 0.0), **saved}
        saved["adapter.content"] = {"centred": False, **saved.get("adapter.content", settings["adapter.content"])}
    for name in saved.keys() & settings.keys():
        if saved[name] != settings[name]:
            return f"was written with {name} {saved[name]}, the config has {settings[name]}"
    if not isinstance(state["step"], int):
        raise TypeError("the step is no whole number")
    shapes = {name: p.shape for name, p in model.trained().items()}
    for part in ("model", "average"):
        if {name: value.shape for name, value in state[part].items()} != shapes:
            return "is of another model than the config describes"
    groups, saved_groups = optimizer.param_groups, state["optimizer"]["param_groups"]
    if [_shape_of(group) for group in groups] != [_shape_of(group) for group in saved_groups]:
        return "has other optimizer groups than the config describes"
    parameters = [p for g in groups for p in g["params"]]
    numbers = [n for g in saved_groups for n in g["params"]]
    for number, moments in state["optimizer"]["state"].items():
        shape = parameters[numbers.index(number)].shape
        if any(m.numel() != 1 if name == "step" else m.shape != shape for name, m in moments.items()):
            return "has moments of another optimizer than the config describes"
    return ""


def _shape_of(group: dict[str, Any]) -> tuple[float, bool, int]:
    # a state of before there was Muon does not say
    return group["factor"], group.get("orthogonal", False), len(group["params"])


def check_finite(model: TrainingModel, loss: torch.Tensor, step: int, folder: Path) -> None:
    """Stop a run that diverged, before it overwrites its last good state.

    Raises:
        LivePhotoError: the loss [] or a trained parameter is not finite after `step` steps.
    """
    finite = [torch.isfinite(loss).all(), *(torch.isfinite(p).all() for p in model.trained().values())]
    if not torch.stack(finite).all():
        kept = f"{folder / STATE} holds the last good state" if (folder / STATE).is_file() else "no state was saved yet"
        raise LivePhotoError(
            f"the training diverged by step {step} (loss {float(loss):g}); {kept}: lower learning_rate, then go on from there"
        )


@torch.no_grad()
def validation_errors(
    model: TrainingModel, batches: Batches, indices: list[int], timesteps: tuple[int, ...], at_once: int
) -> dict[str, float]:
    """Mean square error of the predicted latents x_0 at fixed timesteps on held-out clips, and that of repeating the reference.

    A model that learns motion falls below "repeat" at high timesteps; one that does not, stays above it. Clips go through the
    model `at_once` at a time.
    """
    totals = dict.fromkeys([*(f"x0_{timestep}" for timestep in timesteps), "repeat"], 0.0)
    for first in range(0, len(indices), at_once):
        chosen = indices[first : first + at_once]
        for timestep in timesteps:
            batch = batches.fixed(chosen, timestep).to(model.alphas.device)
            kept = kept_at(model.alphas, batch.timesteps)
            noisy = add_noise(batch.latents, batch.noise, kept)
            output = model.predict(batch, noisy, batch.latents[:, 0], model.host.weigh(*model.weigh_text(batch)))
            found, _ = clean_and_noise(noisy, output.float(), kept, model.prediction)
            totals[f"x0_{timestep}"] += len(chosen) * float((found - batch.latents).square().mean())
        totals["repeat"] += len(chosen) * float((batch.latents[:, :1] - batch.latents).square().mean())
    return {name: total / len(indices) for name, total in totals.items()}


class AveragedWeights:
    """Within this context the model carries the averaged weights, in evaluation mode."""

    def __init__(self, model: TrainingModel, average: Average):
        self.model, self.average = model, average

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.model.trained().items()}
        self._load(self.average.values)
        self.model.eval()

    def __exit__(self, *exception: object) -> None:
        self._load(self.kept)
        self.model.train()

    @torch.no_grad()
    def _load(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.trained().items():
            parameter.copy_(values[name])


def export(model: TrainingModel, base: Base, folder: Path, thresholds: tuple[float, ...], run: RunConfig, step: int) -> None:
    """Write the adapter and, where the base trained too, the whole base beside it: all of them, or nothing.

    The adapter's metadata name the base ("base") and the steps done ("steps"), and hold the run's settings as JSON ("training").

    Raises:
        LivePhotoError: a weight that fp16 cannot hold, or a file cannot be written.
    """
    config = replace(model.adapter.config, ssim_thresholds=tuple(thresholds))
    model.adapter.config = config
    settings = settings_of(run)
    metadata = {"base": settings["base"], "steps": str(step), "training": json.dumps(settings)}
    with atomic_parts(folder) as parts:
        if not run.freeze_base:
            save_base(base, parts)
        save_adapter(model.adapter, parts / ADAPTER, metadata, dtype=torch.float16)


def is_finished(folder: Path, steps: int) -> bool:
    """Whether a run of so many steps has written its last adapter into its folder."""
    path = folder / ADAPTER
    # one of before there were adapters of unfinished runs does not say
    return path.exists() and int(read_metadata(path).get("steps", steps)) >= steps


def fit(
    model: TrainingModel,
    base: Base,
    batches: Batches,
    held_out: list[int],
    run: RunConfig,
    resume: bool,
    sample: Callable[[TrainingModel, int], object],
) -> None:
    """Train to `run.steps`, logging, validating, sampling and saving as the run says.

    `base` is the one that the model was made of. `sample(model, step)` is called with the averaged weights every
    `run.sample_every` steps. A step that does all saves first, so that an error in validating or sampling does not lose it: the
    state to resume from, and what has been learnt so far as the adapter to use.

    Raises:
        LivePhotoError: the batch cannot be shared out, the precision is not to be had here, the state to resume from is missing
            or of another run, the training diverged, or a file cannot be written.
    """
    from accelerate import Accelerator
    from tqdm import tqdm

    folder = Path(run.out)
    try:
        accelerator = Accelerator(mixed_precision=run.mixed_precision, gradient_accumulation_steps=run.accumulate)
    except ValueError as error:
        raise LivePhotoError(f"mixed_precision {run.mixed_precision!r} fails ({first_line(error)}): set it to 'no'") from error
    share = run.batch // run.accumulate // accelerator.num_processes
    if share * run.accumulate * accelerator.num_processes != run.batch:
        raise LivePhotoError(
            f"batch {run.batch} cannot be shared by {accelerator.num_processes} processes and {run.accumulate} accumulated parts"
        )
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LivePhotoError(f"cannot write to {folder}: {error.strerror}; give another out folder") from error
        # a killed run of full size leaves gigabytes
        remove_leftovers(folder / STATE)
        parameters = sum(p.numel() for p in model.trained().values())
        print(f"{accelerator.num_processes} processes, {share} clips each, {parameters:,} parameters")
    if run.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    model.train()
    # thin convolutions run faster so, on a CPU and on a GPU
    model.unet.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, run, accelerator.device)
    model.to(accelerator.device)
    average = Average(model.trained(), run.ema)
    settings = fixed_settings(run, model, batches)
    done = load_state(folder, model, optimizer, average, settings, accelerator.scaler) if resume else 0
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    # a killed run may have logged steps that are now done again
    purge = done + 1 if resume else None
    log = TrainingLog(folder / "log", purge) if accelerator.is_main_process else None
    firsts = [(part * accelerator.num_processes + accelerator.process_index) * share for part in range(run.accumulate)]
    rows = ((step, range(first, first + share)) for step in range(done, run.steps) for first in firsts)
    parts = one_ahead(lambda item: batches.step(*item), rows)
    bar = tqdm(range(done, run.steps), initial=done, total=run.steps, disable=not accelerator.is_main_process, desc="training")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * group["factor"] * learning_rate(step, run)
        total = torch.zeros((), device=accelerator.device)
        for _ in range(run.accumulate):
            batch = next(parts).to(accelerator.device)
            with accelerator.accumulate(wrapped):
                loss = wrapped(batch).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients and run.clip_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), run.clip_gradients)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
        if not accelerator.optimizer_step_was_skipped:
            average.update(model.trained(), step)
        now = step + 1
        last = now == run.steps
        saves = last or now % run.save_every == 0
        validates = bool(held_out and run.validate_every) and (last or now % run.validate_every == 0)
        samples = bool(held_out and run.sample_every) and now % run.sample_every == 0
        if log and (now % 20 == 0 or last):
            value = float(total) / run.accumulate
            bar.set_postfix(loss=f"{value:.4f}")
            log.add(now, {"loss": value, "learning rate": run.learning_rate * learning_rate(step, run)})
        if saves:
            # in every process, so that all of them stop
            check_finite(model, accelerator.reduce(total, "mean") / run.accumulate, now, folder)
        if saves and accelerator.is_main_process:
            save_state(folder, model, optimizer, average, now, settings, accelerator.scaler)
            with AveragedWeights(model, average):
                export(model, base, folder, batches.thresholds, run, now)
        if validates and accelerator.is_main_process:
            with AveragedWeights(model, average), accelerator.autocast():
                errors = validation_errors(model, batches, held_out, VALIDATION_TIMESTEPS, share)
            log.add(now, {f"validation/{name}": value for name, value in errors.items()})
            tqdm.write(json.dumps({"step": now, **{k: round(v, 4) for k, v in errors.items()}}))
        if samples and accelerator.is_main_process:
            with AveragedWeights(model, average), accelerator.autocast():
                sample(model, now)
        if saves or validates or samples:
            accelerator.wait_for_everyone()
    if done >= run.steps and accelerator.is_main_process:
        # the state was saved, but something came between it and the adapter
        with AveragedWeights(model, average):
            export(model, base, folder, batches.thresholds, run, done)
    if log:
        log.close()
