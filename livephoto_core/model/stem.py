"""The condition stem: the six condition channels beside the noise latent (paper section 3.1).

A ten-channel first convolution is the base's own on the noise latent plus one on the conditions, so the base keeps its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .initial import fill


class ConditionStem(nn.Module):
    """conv(c), added to the output of the base's first convolution; zero at the start of training.

    A channel of `unread` counts as zero, whatever it holds: the adapter was trained without it.
    """

    def __init__(self, latent_channels: int, out_channels: int, operations: Any = nn, unread: tuple[int, ...] = ()):
        super().__init__()
        self.unread = unread
        self.conv = operations.Conv2d(latent_channels + 2, out_channels, 3, padding=1, bias=False)
        fill(self.conv.weight, 0)

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        """[(b f), latent + 2, h, w] -> [(b f), C, h, w]; channels in the order of `conditioning.stem_channels`."""
        if self.unread:
            conditions = conditions.index_fill(1, torch.tensor(self.unread, device=conditions.device), 0)
        return self.conv(conditions)
