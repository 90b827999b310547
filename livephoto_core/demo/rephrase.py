"""Teaches a demo model's text encoder more phrasings: `python -m livephoto_core.demo.rephrase runs/clips runs/rephrased`.

The model is its own teacher: on the same noisy clip, the UNet must predict for a new phrasing what it predicts for one that it
knows. The text encoder alone is trained for that; afterwards the re-weighter is fitted anew to shut the padding.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from ..base import load_base
from ..base_write import save_base
from ..checkpoint import load_adapter
from ..commands.model_files import DEMO_FOLDER
from ..errors import LivePhotoError
from ..files import atomic_folder, check_replaceable
from ..model.reweight import apply_weights
from ..schedule import add_noise
from ..training.batches import Batches
from ..training.cache import CachedClips, check_made_from, made_from_of
from ..training.model import Batch, TrainingModel, kept_at, token_weights
from ..training.run import token_ids_of
from .captions import corpus, read_caption
from .clip_cache import HELD_OUT, origin_of
from .padding import shut_padding
from .phrasings import phrasings
from .text import LENGTH

BATCH, RATE, FRAMES = 16, 5e-4, 2
# motion is decided where there is much noise
TIMESTEP_SHIFT = 3.0
# a part of the texts stays as it is, and guidance's empty text too
KNOWN_SHARE, EMPTY_SHARE = 0.3, 0.1
PADDING_PRICE = 0.01
WARMUP = 20
# as many batches tell what the texts do at all
COMPARED_STEPS = 20


def reworded(text: str, vocabulary: dict[str, tuple[str, ...]], generator: torch.Generator) -> str:
    """A caption of the vocabulary in another phrasing, with the same content words; any other text as it is."""
    said = read_caption(text)
    if said is None:
        return text
    choices = vocabulary[said.motion]
    phrasing = choices[int(torch.randint(len(choices), (), generator=generator))]
    return phrasing.format(thing=said.thing, ball=said.ball) + said.place


class Rewording:
    """Batches of a cache in which a share of the texts is reworded; a function of the step."""

    def __init__(self, clips: CachedClips, tokenizer, thresholds: tuple[float, ...], seed: int):
        self.tokenizer, self.seed, self.vocabulary = tokenizer, seed, phrasings()
        known = token_ids_of(tokenizer, ["", *clips.captions], LENGTH)
        self.texts = {tuple(ids): text for ids, text in zip(known.tolist(), ["", *clips.captions], strict=True)}
        indices = list(range(HELD_OUT, len(clips)))
        options = {"frames_per_clip": FRAMES, "timestep_shift": TIMESTEP_SHIFT}
        self.batches = Batches(clips, indices, known[1:], known[0], thresholds, BATCH, seed, EMPTY_SHARE, **options)

    def step(self, step: int) -> tuple[Batch, torch.Tensor]:
        """A batch with texts that the model knows, and the token ids [B, L] that shall mean the same."""
        batch, generator = self.batches.step(step), torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        texts = [self.texts[tuple(ids)] for ids in batch.text_ids.tolist()]
        texts = [
            text if float(torch.rand((), generator=generator)) < KNOWN_SHARE else reworded(text, self.vocabulary, generator)
            for text in texts
        ]
        return batch, token_ids_of(self.tokenizer, texts, LENGTH)


def teach(model: TrainingModel, rewording: Rewording, steps: int) -> Iterator[float]:
    """Train the text encoder; yields each step's squared error, as a share of that of the empty text."""
    teacher = deepcopy(model.text_encoder).requires_grad_(False)
    model.text_encoder.requires_grad_(True)
    model.adapter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.text_encoder.parameters(), lr=RATE, weight_decay=0.0)
    untold: list[float] = []
    for step in trange(steps, desc="rephrasing"):
        rate = min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = RATE * rate
        batch, ids = rewording.step(step)
        reference, latents = batch.latents[:, 0], batch.latents[:, batch.places]
        noisy = add_noise(latents, batch.noise, kept_at(model.alphas, batch.timesteps))
        with torch.no_grad():
            wanted = model.predict(batch, noisy, reference, _weighted(teacher, model, batch)[0])
            if len(untold) < COMPARED_STEPS:
                empty = replace(batch, text_ids=rewording.batches.empty_ids.expand_as(ids))
                blank = model.predict(batch, noisy, reference, _weighted(teacher, model, empty)[0])
                untold.append(float((wanted - blank).square().mean()))
        text, weights = _weighted(model.text_encoder, model, replace(batch, text_ids=ids))
        missed = (model.predict(batch, noisy, reference, text) - wanted).square().mean() * len(untold) / sum(untold)
        _, padding = token_weights(weights, ids)
        optimizer.zero_grad()
        (missed + PADDING_PRICE * padding.mean()).backward()
        nn.utils.clip_grad_norm_(model.text_encoder.parameters(), 1.0)
        optimizer.step()
        yield float(missed.detach())


def _weighted(text_encoder: nn.Module, model: TrainingModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's texts as the UNet reads them [(b f), L, D], and their tokens' weights [B, F, L]."""
    text = text_encoder(batch.text_ids).last_hidden_state
    weights = model.adapter.reweight(text, batch.length)[:, batch.places]
    return apply_weights(text, weights), weights


def rephrase(source: Path, cache: Path, out: Path, steps: int, seed: int = 0) -> None:
    """Write a copy of a model's folder that knows more phrasings.

    Raises:
        LivePhotoError: a folder that is no demo model's, no cache of its clips, or a folder for the copy that is there already or
            cannot be written.
    """
    if steps < 1:
        raise LivePhotoError(f"{steps} steps: use 1 or more")
    if out.exists():
        raise LivePhotoError(f"{out} is there already: name a new folder for the model")
    check_replaceable(out)
    base, adapter = load_base(source), load_adapter(source / "adapter.safetensors")
    clips = CachedClips(cache)
    check_made_from(cache, made_from_of(cache), origin_of(source))
    if len(clips) <= HELD_OUT:
        raise LivePhotoError(f"{cache} holds {len(clips)} clips: cache more than the {HELD_OUT} of validation")
    model = TrainingModel(base.unet, adapter, base.text_encoder, adapter.config.schedule, base.prediction_type, freeze_base=True)
    rewording = Rewording(clips, base.tokenizer, adapter.config.ssim_thresholds, seed)
    torch.manual_seed(seed)
    missed = list(teach(model, rewording, steps))
    part = max(1, steps // 10)
    first, last = (sum(tenth) / part for tenth in (missed[:part], missed[-part:]))
    print(f"error of new phrasings over that of none: {first:.3f} in the first tenth of the steps, {last:.3f} in the last")
    model.host.detach()
    with atomic_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        save_base(base, folder)
        new = [text.format(thing="red car", ball="red") for texts in phrasings().values() for text in texts]
        shut_padding(folder, list(dict.fromkeys([*clips.captions, *corpus(), *new])))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.rephrase", description=__doc__)
    parser.add_argument("cache", type=Path, help="clips that the model's own parts encoded, as clip_cache makes them")
    parser.add_argument("out", type=Path, help="folder for the model that knows more phrasings")
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER, help="a demo model's folder (default: the one that ships)")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    try:
        rephrase(options.model, options.cache, options.out, options.steps)
    except LivePhotoError as error:
        raise SystemExit(f"rephrase: {error}") from error


if __name__ == "__main__":
    main()
