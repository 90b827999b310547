"""Binds the adapter to diffusers' UNet2DConditionModel by forward hooks and attention processors.

After `detach` the UNet is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .conditioning import ClipCondition, check_condition, stem_channels
from .config import BaseShape, content_sites
from .diffusers_attention import SelfAttention
from .diffusers_text import TextOnce, Weighing
from .errors import LivePhotoError
from .fit import check_fit
from .model.adapter import LivePhotoAdapter
from .model.content import KeysValues


def base_shape(unet: nn.Module) -> BaseShape:
    """The shape of a diffusers UNet, in the checkpoint's terms."""
    config = unet.config
    layers = config.layers_per_block
    return BaseShape(
        latent_channels=config.in_channels,
        block_channels=tuple(config.block_out_channels),
        layers_per_block=layers if isinstance(layers, int) else layers[0],
        block_attention=tuple(kind.startswith("CrossAttn") for kind in config.down_block_types),
        context_width=config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else -1,
        norm_groups=config.norm_num_groups,
    )


def grid_of(places: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of a feature map with that many places under a latent of height x width halved some times."""
    rows, columns = height, width
    while rows * columns > places and rows * columns > 1:
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    if rows * columns != places:
        raise LivePhotoError(f"no level of a {width}x{height} latent has {places} places: use a size divisible by 8")
    return rows, columns


@dataclass
class _Call:
    """What a host's hooks read at each call of the UNet.

    It knows neither host nor UNet: hooks that did would keep both in memory after their last user let them go.
    """

    image_strength: float
    motion_strength: float
    condition: ClipCondition | None = None
    photo: dict[str, KeysValues] = field(default_factory=dict)
    tokens: torch.Tensor | None = None

    def current(self) -> ClipCondition:
        if self.condition is None:
            raise LivePhotoError(
                "the UNet has LivePhoto attached but no photo: set one with DiffusersHost.conditioned(...)"
            )
        return self.condition


class DiffusersHost:
    """The adapter on a UNet.

    Use as a context manager, or call `attach` and `detach`. Between them set a condition with `conditioned`, then call the UNet
    with frames in the batch dimension, clip by clip: sample [(b f), C, h, w], text [(b f), L, D].

    Without gradients, the keys and values of a text are kept from call to call while the condition stays: give the same tensor
    at each step, and set the condition again after changing it or the UNet's weights. Of a text that `weigh` made, they are
    computed once for all frames.

    image_strength scales stem and content attention, motion_strength the motion modules; 1 is as trained.
    """

    def __init__(
        self, unet: nn.Module, adapter: LivePhotoAdapter, image_strength: float = 1.0, motion_strength: float = 1.0
    ):
        check_fit(adapter.config, base_shape(unet))
        self.unet, self.adapter = unet, adapter
        self._call = _Call(image_strength, motion_strength)
        self._handles: list[Any] = []
        self._weighing = Weighing()
        # made once: a compiled UNet runs on for as long as it meets the same ones
        self._hooks, self._texts, self._selves = self._all_hooks(), self._all_texts(), self._all_selves()

    @property
    def image_strength(self) -> float:
        """Scale of stem and content attention."""
        return self._call.image_strength

    @image_strength.setter
    def image_strength(self, value: float) -> None:
        self._call.image_strength = value

    @property
    def motion_strength(self) -> float:
        """Scale of the motion modules."""
        return self._call.motion_strength

    @motion_strength.setter
    def motion_strength(self, value: float) -> None:
        self._call.motion_strength = value

    def __enter__(self) -> DiffusersHost:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def attach(self) -> None:
        """Hook the UNet; a second call changes nothing.

        Raises:
            LivePhotoError: the UNet carries another host's hooks.
        """
        if self._handles:
            return
        if any(isinstance(hook, _StemHook) for hook in self.unet.conv_in._forward_hooks.values()):
            raise LivePhotoError("this UNet already has a LivePhoto adapter attached: detach that one first")
        self._handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in self._hooks]
        for attention in (*self._texts, *self._selves):
            attention.take_over()

    def detach(self) -> None:
        """Take every hook and processor off again: the UNet computes what it did before."""
        for handle in self._handles:
            handle.remove()
        for attention in (*self._texts, *self._selves):
            attention.give_way()
        self._weighing.forget()
        self._handles = []

    @contextmanager
    def conditioned(self, condition: ClipCondition) -> Iterator[None]:
        """Set what the clips in the batch are conditioned on.

        The photo's keys and values are computed once; with gradients, at each call.
        """
        self.condition(condition)
        try:
            yield
        finally:
            self._call.condition, self._call.photo, self._call.tokens = None, {}, None
            self._forget_text()
            self._weighing.forget()

    def condition(self, condition: ClipCondition) -> None:
        """As `conditioned`, until the next call; training needs it, where the backward pass runs the hooks again."""
        check_condition(condition, self.adapter.config)
        self._call.condition, self._call.photo, self._call.tokens = condition, {}, None
        if not torch.is_grad_enabled():
            self._call.photo = self.adapter.photo_keys_values(condition.tokens, condition.grid)
        elif self.adapter.content.names:
            self._call.tokens = self.adapter.project_tokens(condition.tokens)
        self._forget_text()

    def weigh(self, text: torch.Tensor, weights: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """A text a frame [(b f), L, D], as `model.reweight.apply_weights` makes it, for the next calls of the UNet.

        It is known again by being the same tensor: do not change it in place.

        Args:
            text: [B, L, D].
            weights: [B, F, L].
            strength: 1 is as learnt, 0 is off.
        """
        return self._weighing.weigh(text, weights, strength)

    def _forget_text(self) -> None:
        for text in self._texts:
            text.forget()

    def _all_hooks(self) -> list[tuple[nn.Module, Callable]]:
        """Each hook with the module that it goes behind."""
        module, call = self.unet.get_submodule, self._call
        hooks: list[tuple[nn.Module, Callable]] = [(module("conv_in"), _StemHook(self.adapter.stem, call))]
        for name in self.adapter.motion.names:
            block, _, index = name.rpartition(".motion_modules.")
            # behind the spatial transformer where there is one, else behind the ResNet
            kind = "attentions" if getattr(module(block), "attentions", None) else "resnets"
            # diffusers checkpoints a ResNet with its hooks, but of a spatial transformer only what is inside it
            uncovered = module(block) if kind == "attentions" else None
            hooks.append((module(f"{block}.{kind}.{index}"), _MotionHook(self.adapter.motion[name], uncovered, call)))
        for name in self.adapter.content.names:
            hook = _ContentHook(self.adapter.content[name], name, module(name), call)
            hooks += [(block.attn2, hook) for block in module(name).transformer_blocks]
        return hooks

    def _all_texts(self) -> list[TextOnce]:
        return [TextOnce(block.attn2, self._weighing) for block in self._spatial_blocks()]

    def _all_selves(self) -> list[SelfAttention]:
        return [SelfAttention(block.attn1) for block in self._spatial_blocks()]

    def _spatial_blocks(self) -> list[nn.Module]:
        spatial = (self.unet.get_submodule(name) for name in content_sites(self.adapter.config.base))
        return [block for transformer in spatial for block in transformer.transformer_blocks]


@dataclass(eq=False)
class _StemHook:
    """Adds the condition stem's output to the first convolution's."""

    stem: nn.Module
    call: _Call

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        condition = self.call.current()
        if condition.latent.shape[2:] != output.shape[2:]:
            raise LivePhotoError(
                f"the reference latent is {tuple(condition.latent.shape[2:])}, the clip's {tuple(output.shape[2:])}: "
                "encode the photo at the clip's size"
            )
        clips, frames = condition.levels.shape
        if output.shape[0] != clips * frames:
            raise LivePhotoError(
                f"the UNet was called with {output.shape[0]} frames, the condition is for {clips} clips of {frames}: "
                "see ClipCondition.repeated"
            )
        channels = stem_channels(condition.latent, condition.position, condition.levels)
        return torch.add(output, self.stem(channels.to(output)), alpha=self.call.image_strength)


@dataclass(eq=False)
class _MotionHook:
    """Adds a motion module's residual; `checkpointing` is the block whose gradient checkpointing it has to follow, if any."""

    motion: nn.Module
    checkpointing: nn.Module | None
    call: _Call

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        condition = self.call.current()
        if self.checkpointing is not None and self.checkpointing.gradient_checkpointing and torch.is_grad_enabled():
            residual = checkpoint(self.motion, hidden, condition.frames, condition.places, use_reentrant=False)
        else:
            residual = self.motion(hidden, condition.frames, condition.places)
        moved = torch.add(hidden, residual, alpha=self.call.motion_strength)
        return moved if isinstance(output, torch.Tensor) else (moved, *output[1:])


@dataclass(eq=False)
class _ContentHook:
    """Adds content attention, at one site, to the text cross-attention's output; `transformer` is the spatial one around it."""

    content: nn.Module
    site: str
    transformer: nn.Module
    call: _Call

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        hidden = args[0] if args else kwargs["hidden_states"]
        condition = self.call.current()
        grid = grid_of(hidden.shape[1], *condition.latent.shape[2:])
        if self.call.tokens is not None and torch.is_grad_enabled():
            residual = self._look(hidden, grid, self.call.tokens, condition.grid)
        else:
            # not there yet where the condition was set with gradients
            if self.site not in self.call.photo:
                self.call.photo[self.site] = self.content.keys_values(self.call.tokens, condition.grid)
            residual = self.content(hidden, grid, self.call.photo[self.site])
        return torch.add(output, residual, alpha=self.call.image_strength)

    def _look(self, *arguments: Any) -> torch.Tensor:
        # computed again in the backward pass, where it is not anyway: all sites' keys, values and queries would be much to keep
        if self.transformer.gradient_checkpointing:
            return self.content.look(*arguments)
        return checkpoint(self.content.look, *arguments, use_reentrant=False)
