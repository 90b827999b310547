"""The picture of a text's weights: a bar under each word."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

HEIGHT, BAR, MARGIN, TEXT_SIZE = 190, 110, 14, 18
PAPER, INK, FULL, EMPTY = (24, 26, 32), (232, 232, 236), (255, 176, 59), (52, 56, 66)


def bars_picture(words: list[tuple[str, float]]) -> torch.Tensor:
    """Words with their weights 0..1 as an IMAGE [1, HEIGHT, W, 3], 0..1."""
    font = ImageFont.load_default(TEXT_SIZE)
    widths = [max(36, round(font.getlength(name))) for name, _ in words]
    width = max(2 * MARGIN + sum(widths) + MARGIN * (len(words) - 1), 128)
    picture = Image.new("RGB", (width, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    left = MARGIN
    for (name, weight), wide in zip(words, widths, strict=True):
        top = MARGIN + TEXT_SIZE
        draw.rectangle((left, top, left + wide, top + BAR), fill=EMPTY)
        draw.rectangle((left, top + round(BAR * (1 - min(1.0, weight))), left + wide, top + BAR), fill=FULL)
        middle = left + wide / 2
        draw.text((middle, MARGIN - 4), f"{weight:.2f}", INK, font=font, anchor="mt")
        draw.text((middle, top + BAR + 8), name, INK, font=font, anchor="mt")
        left += wide + MARGIN
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]
