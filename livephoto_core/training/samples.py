"""Sample sheets while a run goes on: the same held-out photos, texts and seeds every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..base import Base
from ..encoding import decode, overlong_text, text_length
from ..media_write import contact_sheet, write_picture
from ..pipeline import LivePhoto, Settings
from .batches import Batches
from .model import TrainingModel

ROWS = 6
# what a row without a caption is drawn with: the pipeline takes no empty text
NO_CAPTION = "a video"


def readable(base: Base, text: str) -> str:
    """As much of a caption as the text encoder reads; NO_CAPTION for an empty one."""
    room = text_length(base) - 2
    while overlong_text(base, text):
        text = base.tokenizer.decode(base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:room])
        # the cut text may have other tokens, and more of them
        room -= 1
    return text if text.strip() else NO_CAPTION


@dataclass(frozen=True)
class Sampler:
    """Draws a sheet, a row a held-out photo: its own caption, or the run's `texts` in turn, at its own level."""

    base: Base
    batches: Batches
    held_out: list[int]
    texts: tuple[str, ...]
    folder: Path
    cfg: float

    @torch.no_grad()
    def __call__(self, model: TrainingModel, step: int) -> None:
        """Write `step-000123.png`. The model's own hooks are off meanwhile, the pipeline puts on its own.

        What the model does not train with is on its device for as long as this takes, then on the CPU again.

        Raises:
            LivePhotoError: the sheet cannot be written.
        """
        chosen = self.held_out[:ROWS]
        base = self.base.to(next(model.parameters()).device)
        batch = self.batches.fixed(chosen, 0)
        photos = decode(base, batch.latents[:, 0].to(base.device)).float().cpu()
        levels = batch.levels[:, 0].tolist()
        captions = [self.texts[i % len(self.texts)] if self.texts else self.batches.clips.captions[c] for i, c in enumerate(chosen)]
        texts = [readable(base, caption) for caption in captions]
        model.host.detach()
        try:
            livephoto = LivePhoto(base, model.adapter)
            rows = [
                livephoto.animate(photo, Settings(text, intensity=level, cfg=self.cfg)).float()
                for photo, text, level in zip(photos, texts, levels, strict=True)
            ]
        finally:
            model.host.attach()
            trains = set(model.modules())
            for part in (base.vae, base.text_encoder, base.image_encoder):
                if part is not None and part not in trains:
                    part.to("cpu")
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = [f"{text} | {level:g}" for text, level in zip(texts, levels, strict=True)]
        write_picture(contact_sheet(rows, labels), self.folder / f"step-{step:06d}.png", {"step": step})
