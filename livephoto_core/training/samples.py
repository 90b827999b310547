"""Sample sheets while a run goes on: the same held-out photos, texts and seeds every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..base import Base, decode
from ..media_write import contact_sheet, write_picture
from ..pipeline import LivePhoto, Settings
from .batches import Batches
from .model import TrainingModel

ROWS = 6


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
        """Write `step-000123.png`. The model's own hooks are off meanwhile, the pipeline puts on its own."""
        chosen = self.held_out[:ROWS]
        base = self.base.to(next(model.parameters()).device)
        photos = decode(base, self.batches.clips.latents(chosen)[:, 0].to(base.device)).cpu()
        levels = self.batches.fixed(chosen, 0).levels[:, 0].tolist()
        texts = [self.texts[i % len(self.texts)] if self.texts else self.batches.clips.captions[c] for i, c in enumerate(chosen)]
        model.host.detach()
        try:
            livephoto = LivePhoto(base, model.adapter)
            rows = [
                livephoto.animate(photo, Settings(text, intensity=level, cfg=self.cfg))
                for photo, text, level in zip(photos, texts, levels, strict=True)
            ]
        finally:
            model.host.attach()
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = [f"{text} | {level:g}" for text, level in zip(texts, levels, strict=True)]
        write_picture(contact_sheet(rows, labels), self.folder / f"step-{step:06d}.png", {"step": step})
