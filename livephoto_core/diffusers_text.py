"""Text cross-attention of a diffusers UNet with keys and values computed once a sampling and once for all frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .diffusers_attention import StandIn
from .model.reweight import scale_words, word_factors


@dataclass(eq=False)
class Weighing:
    """The text that was last weighed, and how. A word that counts half has keys and values half as large, in every frame its own:
    they need to be computed of the words alone.
    """

    frames: torch.Tensor | None = None
    words: torch.Tensor | None = None
    factors: torch.Tensor | None = None

    def weigh(self, text: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
        """As `apply_weights`."""
        self.words, self.factors = text, word_factors(weights, strength)
        self.frames = scale_words(text, self.factors)
        return self.frames

    def forget(self) -> None:
        """Let the text go."""
        self.frames = self.words = self.factors = None


class _Kept(NamedTuple):
    """A text with its keys and values, [(b f), L, C], or of its words [B, L, C] and then to be scaled by `factors` [B, F, L]."""

    text: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    factors: torch.Tensor | None

    def of_frames(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.factors is None:
            return self.keys, self.values
        return scale_words(self.keys, self.factors), scale_words(self.values, self.factors)


def _is_linear(layer: nn.Module) -> bool:
    # what others put in its place need not be
    return type(layer) is nn.Linear and layer.bias is None


class TextOnce(StandIn):
    """Cross-attention for the same text at many steps.

    A text of unknown words with gradients, where nothing may be kept, is left to the default processor. The weights must not change
    while this holds keys and values: `forget` lets them go.
    """

    def __init__(self, attention: nn.Module, weighing: Weighing):
        super().__init__(attention)
        self._weighing = weighing
        self._kept: _Kept | None = None

    def give_way(self) -> None:
        """Put the default processor back, and let the text go."""
        self.forget()
        super().give_way()

    def keys_values(
        self, attn: nn.Module, hidden: torch.Tensor, text: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Those of the text, kept or computed."""
        if text is None:
            return None
        weighed = text is self._weighing.frames and _is_linear(attn.to_k) and _is_linear(attn.to_v)
        if torch.is_grad_enabled():
            return self._project(attn, text, weighed).of_frames() if weighed else None
        if self._kept is None or text is not self._kept.text:
            self._kept = self._project(attn, text, weighed)
        return self._kept.of_frames()

    def _project(self, attn: nn.Module, text: torch.Tensor, weighed: bool) -> _Kept:
        known, factors = (self._weighing.words, self._weighing.factors) if weighed else (text, None)
        return _Kept(text, attn.to_k(known), attn.to_v(known), factors)

    def forget(self) -> None:
        """Let the text, its keys and its values go."""
        self._kept = None
