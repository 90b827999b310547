"""Text cross-attention of a diffusers UNet with keys and values computed once a sampling, not at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .model.attention import attend, heads_first


class TextOnce:
    """An attention processor of diffusers for the same text at many steps.

    It stands in for diffusers' default one, and hands over to it wherever keys and values must not be kept: with gradients, and
    under a mask. The weights must not change while it holds them: `forget` lets them go. After `give_way` it is the default one,
    wherever others may have kept it.
    """

    def __init__(self, attention: nn.Module):
        self._attention = attention
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
        if not self._active or text is None or attention_mask is not None or torch.is_grad_enabled():
            return self._default(attn, hidden_states, text, attention_mask, temb, **more)
        if text is not self._text:
            self._text = text
            self._keys_values = tuple(heads_first(layer(text), attn.heads) for layer in (attn.to_k, attn.to_v))
        out = attend(heads_first(attn.to_q(hidden_states), attn.heads), *self._keys_values)
        return attn.to_out[1](attn.to_out[0](out))

    def forget(self) -> None:
        """Let the text, its keys and its values go."""
        self._text = self._keys_values = None
