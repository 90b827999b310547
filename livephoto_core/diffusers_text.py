"""Text cross-attention of a diffusers UNet with keys and values computed once a sampling and once for all frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .model.attention import attend, heads_first
from .model.reweight import apply_weights


@dataclass(eq=False)
class Weighing:
    """The text that was last weighed, and how. A word that counts half has keys and values half as large, in every frame its own:
    they need to be computed of the words alone.
    """

    frames: torch.Tensor | None = None
    words: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    strength: float = 1.0

    def weigh(self, text: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
        """As `apply_weights`."""
        self.frames, self.words, self.weights = apply_weights(text, weights, strength), text, weights
        self.strength = strength
        return self.frames

    def forget(self) -> None:
        """Let the text go."""
        self.frames = self.words = self.weights = None

    def words_of(self, text: torch.Tensor) -> torch.Tensor | None:
        """The words [B, L, D] of a text a frame, if it is the one that was weighed."""
        return self.words if text is self.frames else None


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
        self._text: torch.Tensor | None = None
        self._keys_values: tuple[torch.Tensor, torch.Tensor] | None = None

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
        words = None if attn.to_k.bias is not None or attn.to_v.bias is not None else self._weighing.words_of(text)
        if torch.is_grad_enabled():
            if words is None:
                return self._default(attn, hidden_states, text, attention_mask, temb, **more)
            keys_values = attn.to_k(words), attn.to_v(words)
        else:
            if text is not self._text:
                known = text if words is None else words
                self._text, self._keys_values = text, (attn.to_k(known), attn.to_v(known))
            keys_values = self._keys_values
        if words is not None:
            keys_values = tuple(apply_weights(x, self._weighing.weights, self._weighing.strength) for x in keys_values)
        out = attend(*(heads_first(x, attn.heads) for x in (attn.to_q(hidden_states), *keys_values)))
        return attn.to_out[1](attn.to_out[0](out))

    def forget(self) -> None:
        """Let the text, its keys and its values go."""
        self._text = self._keys_values = None
