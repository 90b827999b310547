"""Attention processors that stand in for diffusers' default one while the adapter is attached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from .model.attention import attend, heads_first


class StandIn(ABC):
    """An attention processor of diffusers in the place of its default one.

    It hands over to that one what it has no answer for. After `give_way` it is the default one, wherever others may have kept it.
    """

    def __new__(cls, attention: nn.Module | None = None, *_: Any) -> Any:
        # where an IP-Adapter comes or goes, diffusers calls each processor's class for a fresh one: the default one then
        if attention is None:
            from diffusers.models.attention_processor import AttnProcessor2_0

            return AttnProcessor2_0()
        return super().__new__(cls)

    def __init__(self, attention: nn.Module):
        self._attention = attention
        self._active = False
        self._default: Any = None

    def take_over(self) -> None:
        """Stand in for the attention's processor, if that is diffusers' default and the layer a plain one."""
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
        keys_values = None
        if self._active and attention_mask is None:
            keys_values = self.keys_values(attn, hidden_states, encoder_hidden_states)
        if keys_values is None:
            return self._default(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **more)
        out = attend(*(heads_first(x, attn.heads) for x in (attn.to_q(hidden_states), *keys_values)))
        return attn.to_out[1](attn.to_out[0](out))

    @abstractmethod
    def keys_values(
        self, attn: nn.Module, hidden: torch.Tensor, text: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values [N, L, C] for hidden states [N, P, C] and a text [N, L, D]; None to hand over to the default one."""


class SelfAttention(StandIn):
    """Self-attention as `attend` computes it."""

    def keys_values(
        self, attn: nn.Module, hidden: torch.Tensor, text: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Those of the hidden states, where there is no text."""
        return None if text is not None else (attn.to_k(hidden), attn.to_v(hidden))
