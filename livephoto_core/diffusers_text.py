"""Text cross-attention of a diffusers UNet with keys and values computed once a sampling and once for all frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .model.attention import attend, heads_first
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


class TextOnce:
    """An attention processor of diffusers for the same text at many steps.

    It stands in for diffusers' default one, and hands over to it what that does as well: a text of unknown words with gradients,
    where nothing may be kept, and one under a mask. The weights must not change while it holds keys and values: `forget` lets
    them go. After `give_way` it is the default one, wherever others may have kept it.
    """

    def __init__(self, attention: nn.Module, weighing: Weighing):
        self._attention, self._weighing = attention, weighing
        self._active = False
        self._default: Any = None
        self._kept: _Kept | None = None

    def take_over(self) -> None:
        """Stand in for the cross-attention's processor, if that is diffusers' default and the layer a plain one."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        layer = self._attention
        norms = (layer.norm_cross, layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k)
        plain = not layer.residual_connection and layer.rescale_output_factor == 1 and all(norm is None for norm in norms)
        if plain and type(layer.processor) is AttnProcessor2_0:
            self._default = layer.processor
            layer.set_processor(self)
        # others may have put it back on after it gave way
        self._active = layer.processor is self

    def give_way(self) -> None:
        """Put the default processor back, unless another one has been set since."""
        self.forget()
        self._active = False
        if self._attention.processor is self:
            self._attention.set_processor(self._default)

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        text = encoder_hidden_states
        if not self._active or text is None or attention_mask is not None:
            return self._default(attn, hidden_states, text, attention_mask, temb, **more)
        weighed = text is self._weighing.frames and _is_linear(attn.to_k) and _is_linear(attn.to_v)
        if torch.is_grad_enabled():
            if not weighed:
                return self._default(attn, hidden_states, text, attention_mask, temb, **more)
            keys_values = self._project(attn, text, weighed).of_frames()
        else:
            if self._kept is None or text is not self._kept.text:
                self._kept = self._project(attn, text, weighed)
            keys_values = self._kept.of_frames()
        out = attend(*(heads_first(x, attn.heads) for x in (attn.to_q(hidden_states), *keys_values)))
        return attn.to_out[1](attn.to_out[0](out))

    def _project(self, attn: nn.Module, text: torch.Tensor, weighed: bool) -> _Kept:
        known, factors = (self._weighing.words, self._weighing.factors) if weighed else (text, None)
        return _Kept(text, attn.to_k(known), attn.to_v(known), factors)

    def forget(self) -> None:
        """Let the text, its keys and its values go."""
        self._kept = None
