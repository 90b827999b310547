"""Binds the adapter to diffusers' UNet2DConditionModel by forward hooks and, for the text, attention processors.

After `detach` the UNet is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .conditioning import ClipCondition, check_condition, stem_channels
from .config import BaseShape, content_sites
from .diffusers_text import TextOnce
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


class DiffusersHost:
    """The adapter on a UNet.

    Use as a context manager, or call `attach` and `detach`. Between them set a condition with `conditioned`, then call the UNet
    with frames in the batch dimension, clip by clip: sample [(b f), C, h, w], text [(b f), L, D].

    Without gradients, the keys and values of a text are kept from call to call while the condition stays: give the same tensor
    at each step, and set the condition again after changing it or the UNet's weights.

    image_strength scales stem and content attention, motion_strength the motion modules; 1 is as trained.
    """

    def __init__(
        self, unet: nn.Module, adapter: LivePhotoAdapter, image_strength: float = 1.0, motion_strength: float = 1.0
    ):
        check_fit(adapter.config, base_shape(unet))
        self.unet, self.adapter = unet, adapter
        self.image_strength, self.motion_strength = image_strength, motion_strength
        self._handles: list[Any] = []
        # made once: a compiled UNet runs on for as long as it meets the same ones
        self._hooks, self._texts = self._all_hooks(), self._all_texts()
        self._condition: ClipCondition | None = None
        self._photo: dict[str, KeysValues] = {}

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
        if any(isinstance(getattr(h, "__self__", None), DiffusersHost) for h in self.unet.conv_in._forward_hooks.values()):
            raise LivePhotoError("this UNet already has a LivePhoto adapter attached: detach that one first")
        self._handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in self._hooks]
        for text in self._texts:
            text.take_over()

    def detach(self) -> None:
        """Take every hook and processor off again: the UNet computes what it did before."""
        for handle in self._handles:
            handle.remove()
        for text in self._texts:
            text.give_way()
        self._handles = []

    @contextmanager
    def conditioned(self, condition: ClipCondition) -> Iterator[None]:
        """Set what the clips in the batch are conditioned on; the photo's keys and values are computed here, once."""
        self.condition(condition)
        try:
            yield
        finally:
            self._condition, self._photo = None, {}
            self._forget_text()

    def condition(self, condition: ClipCondition) -> None:
        """As `conditioned`, until the next call; training needs it, where the backward pass runs the hooks again."""
        check_condition(condition, self.adapter.config)
        self._condition = condition
        self._photo = self.adapter.photo_keys_values(condition.tokens, condition.grid)
        self._forget_text()

    def _forget_text(self) -> None:
        for text in self._texts:
            text.forget()

    def _all_hooks(self) -> list[tuple[nn.Module, Callable]]:
        """Each hook with the module that it goes behind."""
        module = self.unet.get_submodule
        hooks = [(module("conv_in"), self._after_conv_in)]
        hooks += [(module(self._motion_host(name)), self._motion_hook(name)) for name in self.adapter.motion.names]
        for name in self.adapter.content.names:
            hook = self._content_hook(name)
            hooks += [(block.attn2, hook) for block in module(name).transformer_blocks]
        return hooks

    def _all_texts(self) -> list[TextOnce]:
        spatial = (self.unet.get_submodule(name) for name in content_sites(self.adapter.config.base))
        return [TextOnce(block.attn2) for transformer in spatial for block in transformer.transformer_blocks]

    def _motion_host(self, site: str) -> str:
        """The module after which a motion module comes: the spatial transformer where there is one, else the ResNet."""
        block, _, index = site.rpartition(".motion_modules.")
        transformers = getattr(self.unet.get_submodule(block), "attentions", None)
        return f"{block}.{'attentions' if transformers else 'resnets'}.{index}"

    def _current(self) -> ClipCondition:
        if self._condition is None:
            raise LivePhotoError(
                "the UNet has LivePhoto attached but no photo: set one with DiffusersHost.conditioned(...)"
            )
        return self._condition

    def _after_conv_in(self, module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        condition = self._current()
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
        return output + self.image_strength * self.adapter.stem(channels.to(output))

    def _motion_hook(self, name: str) -> Callable:
        module = self.adapter.motion[name]
        block = self.unet.get_submodule(name.rpartition(".motion_modules.")[0])
        # diffusers checkpoints a ResNet with its hooks, but of a spatial transformer only what is inside it
        uncovered = ".attentions." in self._motion_host(name)

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            condition = self._current()
            if uncovered and block.gradient_checkpointing and torch.is_grad_enabled():
                residual = checkpoint(module, hidden, condition.frames, condition.places, use_reentrant=False)
            else:
                residual = module(hidden, condition.frames, condition.places)
            moved = hidden + self.motion_strength * residual
            return moved if isinstance(output, torch.Tensor) else (moved, *output[1:])

        return hook

    def _content_hook(self, name: str) -> Callable:
        module = self.adapter.content[name]

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
            hidden = args[0] if args else kwargs["hidden_states"]
            grid = grid_of(hidden.shape[1], *self._current().latent.shape[2:])
            return output + self.image_strength * module(hidden, grid, self._photo[name])

        return hook
