"""Text cross-attention of a diffusers UNet with keys and values computed once a sampling, not at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .model.attention import attend, heads_first


class TextOnce:
    """An attention processor of diffusers for the same text at many steps.

    It stands in for diffusers' default one, and hands over to it wherever keys and values must not be kept: with gradients, and
    under a mask. The weights must not change while it holds them: `forget` lets them go.
    """

    def __init__(self, attention: nn.Module):
        self._attention, self._default = attention, attention.processor
        self._text: torch.Tensor | None = None
        self._keys_values: tuple[torch.Tensor, torch.Tensor] | None = None

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
        if text is None or attention_mask is not None or torch.is_grad_enabled():
            return self._default(attn, hidden_states, text, attention_mask, temb, **more)
        if text is not self._text:
            self._text = text
            self._keys_values = tuple(heads_first(layer(text), attn.heads) for layer in (attn.to_k, attn.to_v))
        out = attend(heads_first(attn.to_q(hidden_states), attn.heads), *self._keys_values)
        return attn.to_out[1](attn.to_out[0](out))

    def forget(self) -> None:
        """Let the text, its keys and its values go."""
        self._text = self._keys_values = None

    def give_way(self) -> None:
        """Put the default processor back, unless another has been set since."""
        if self._attention.processor is self:
            self._attention.set_processor(self._default)


def keep_text(attention: nn.Module) -> TextOnce | None:
    """Let a cross-attention of the UNet keep its text; None where it computes otherwise than by diffusers' default."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    plain = (attention.norm_cross, attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k)
    if type(attention.processor) is not AttnProcessor2_0 or any(norm is not None for norm in plain):
        return None
    if attention.residual_connection or attention.rescale_output_factor != 1:
        return None
    processor = TextOnce(attention)
    attention.set_processor(processor)
    return processor
