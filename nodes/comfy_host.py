"""Binds the adapter to ComfyUI's UNetModel: patches for stem and content attention, forward hooks for the motion modules.

Everything acts only inside a UNet call of the patched MODEL: a wrapper around the call reads from it how many clips of how many
frames there are. Hooks that outlive their MODEL are without effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from einops import rearrange, repeat
from torch import nn

from ..livephoto_core.conditioning import ClipCondition, check_condition, stem_channels
from ..livephoto_core.config import AdapterConfig, BaseShape, NoiseSchedule, noise_shares
from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.fit import check_fit
from ..livephoto_core.model.adapter import LivePhotoAdapter
from ..livephoto_core.model.content import KeysValues
from ..livephoto_core.noise import share_noise
from .checks import check_numbers
from .sampling_checks import check_hints, check_predicted, check_schedule, check_texts, frames_of
from .types import LoadedModel, Motion, Reference
from .windows import places_of

KEY = "livephoto"
# pixels a side of the picture that ComfyUI's DINOv2 is shown
DINOV2_SIDE = 518
# ComfyUI calls the scaled-linear schedule "linear" and the linear one "sqrt_linear"
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear"}


@dataclass
class Call:
    """One UNet call: its condition, and what the text cross-attention now running was given."""

    condition: ClipCondition
    photo: dict[str, KeysValues]
    hidden: torch.Tensor | None = None


@dataclass
class Hooks:
    """The forward hooks on one UNet, and the clones that they are injected for."""

    handles: list[Any] = field(default_factory=list)
    users: WeakSet = field(default_factory=WeakSet)


@dataclass
class Host:
    """What the patches of one MODEL and its clones share.

    `call` is set while the UNet runs; `photos` keeps keys and values over a sampling; `hooks` are by UNet: newer ComfyUI may load
    a second one for a clone; `name` tells the host from all others.
    """

    adapter: LivePhotoAdapter
    reference: Reference
    latent: torch.Tensor
    motion: Motion
    image_strength: float
    motion_strength: float
    call: Call | None = None
    photos: dict[tuple, dict[str, KeysValues]] = field(default_factory=dict)
    hooks: WeakKeyDictionary[nn.Module, Hooks] = field(default_factory=WeakKeyDictionary)
    name: str = field(default_factory=lambda: uuid4().hex)


def base_shape(model: Any) -> BaseShape:
    """The shape of a MODEL's UNet, in the checkpoint's terms.

    Raises:
        LivePhotoError: it has no UNet of Stable Diffusion's kind.
    """
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        kind = type(model.model).__name__
        raise LivePhotoError(f"LivePhoto needs an SD1.5 model; this one is {kind}: load an SD1.5 checkpoint")
    config = model.model.model_config.unet_config
    layers, depths = config["num_res_blocks"], list(config["transformer_depth"])
    attends = []
    for count in layers:
        attends.append(any(depths[:count]))
        del depths[:count]
    return BaseShape(
        latent_channels=config["in_channels"],
        block_channels=tuple(config["model_channels"] * m for m in config["channel_mult"]),
        layers_per_block=layers[0],
        block_attention=tuple(attends),
        context_width=config["context_dim"] or -1,
        norm_groups=unet.out[0].num_groups,
    )


def block_of(site: str, layers: int) -> tuple[str, int]:
    """ComfyUI's name of the block at a site in AnimateDiff's or diffusers' terms: "up_blocks.1.attentions.2" -> ("output", 5)."""
    part, *numbers = site.split(".")
    if part == "mid_block":
        return "middle", 0
    level, place = int(numbers[0]), int(numbers[2])
    if part == "down_blocks":
        return "input", 1 + level * (layers + 1) + place
    return "output", level * (layers + 1) + place


def _sequential(unet: UNetModel, block: tuple[str, int]) -> nn.Sequential:
    kind, number = block
    return unet.middle_block if kind == "middle" else {"input": unet.input_blocks, "output": unet.output_blocks}[kind][number]


def _motion_host(unet: UNetModel, block: tuple[str, int]) -> nn.Module:
    """The module after which a motion module comes: the spatial transformer where there is one, else the ResNet."""
    layers = list(_sequential(unet, block))
    return next((m for m in layers if isinstance(m, SpatialTransformer)), None) or next(
        m for m in layers if isinstance(m, ResBlock)
    )


def sampling_of(model: Any, schedule: NoiseSchedule) -> nn.Module:
    """The MODEL's own kind of model_sampling (eps, v, LCM ...) on another noise schedule."""
    own = model.get_model_object("model_sampling")
    settings = {
        "zsnr": getattr(own, "zsnr", False),
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.timesteps,
    }
    return type(own)(SimpleNamespace(sampling_settings=settings))


def apply(
    model: Any, livephoto: LoadedModel, reference: Reference, motion: Motion, image_strength: float, motion_strength: float
) -> Any:
    """A clone of a MODEL that makes clips: frames in the batch dimension, one clip a photo of the reference.

    Args:
        model: ComfyUI's ModelPatcher of an SD1.5 UNet; stays as it is.
        livephoto: the checkpoint; its weights are loaded and offloaded with the MODEL.
        reference: B photos.
        motion: the level of the clips.
        image_strength: scales stem and content attention, 1 is as trained; the level is told through the stem and goes with it.
        motion_strength: scales the motion modules, 1 is as trained.

    Raises:
        LivePhotoError: another kind of model, one that has LivePhoto already, or a photo that was encoded for another one.
    """
    config = livephoto.config
    check_fit(config, base_shape(model))
    check_numbers(image_strength=image_strength, motion_strength=motion_strength)
    if model.get_additional_models_with_key(KEY):
        raise LivePhotoError("this MODEL already went through Apply LivePhoto: connect the MODEL from before it")
    if not config.parts.content:
        reference = replace(reference, tokens=reference.latent.new_zeros(1, 0, config.content.token_width), grid=(0, 0))
    check_reference(reference, motion, config)
    latent = model.model.process_latent_in(reference.latent)
    host = Host(livephoto.adapter, reference, latent, motion, image_strength, motion_strength)
    layers = config.base.layers_per_block
    patched = model.clone()
    patched.set_additional_models(KEY, [livephoto.patcher])
    patched.set_attachments(KEY, reference)
    patched.add_object_patch("model_sampling", sampling_of(model, config.schedule))
    content = {block_of(site, layers): site for site in host.adapter.content.names}
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, _around_model(host))
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, _around_call(host, content))
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, _around_sampling(host))
    # a plain function, not a bound method: clone() copies the object behind a method, weights and all
    patched.set_model_input_block_patch(_stem_patch(host))
    sites = {site: block_of(site, layers) for site in host.adapter.motion.names}
    patched.set_injections(KEY, [_motion_injection(host, sites)])
    return patched


def check_reference(reference: Reference, motion: Motion, config: AdapterConfig) -> None:
    """Refuse a photo that was encoded with another VAE or image encoder than the checkpoint's.

    Raises:
        LivePhotoError: names what differs, both numbers and the encoder.
    """
    levels = motion.levels(len(reference.latent), config.frames)
    check_condition(ClipCondition(reference.latent, reference.tokens, reference.grid, levels), config)
    if not config.parts.content:
        return
    # another encoder's patches may be as many
    if config.content.encoder.startswith("facebook/dinov2") and config.content.image_size != DINOV2_SIDE:
        raise LivePhotoError(
            f"the LivePhoto checkpoint was trained on photos of {config.content.image_size} pixels (content.image_size), ComfyUI "
            f"shows DINOv2 {DINOV2_SIDE}: animate with `livephoto animate`, or train with image_size {DINOV2_SIDE}"
        )
    # other encoders are as wide, and see the picture in other patches
    side = config.content.image_size // config.content.patch_size
    if reference.grid != (side, side):
        rows, columns = reference.grid
        raise LivePhotoError(
            f"the photo has {rows * columns} patch tokens ({rows}x{columns}), the LivePhoto checkpoint needs {side * side} "
            f"({side}x{side}): encode the photo with {config.content.encoder}"
        )


def condition_of(host: Host, batch: int, chunks: int, window: Any | None) -> ClipCondition:
    """The condition of a UNet call on `batch` frames in `chunks` conds; `window` is that of `window_of`, if any.

    Raises:
        LivePhotoError: the batch is not made of whole clips, or of too many frames.
    """
    clips = len(host.latent)
    # before the frames are counted: a window's are no multiple of the photos
    if window is not None and clips > 1:
        raise LivePhotoError(f"context windows take one photo at a time, the reference has {clips}: sample them one by one")
    frames = frames_of(batch // chunks, clips)
    most = host.adapter.config.motion.max_frames
    if frames > most and window is not None:
        raise LivePhotoError(
            f"the context windows have {frames} frames, the LivePhoto checkpoint takes {most} at once: set their length to {most} "
            "or less, or put LivePhoto Context Windows in place of their node"
        )
    if frames > most:
        has = f"{frames} frames" if clips == 1 else f"{frames} frames a photo"
        fix = f"{most} or less, or put LivePhoto Context Windows behind Apply LivePhoto"
        raise LivePhotoError(
            f"the latent has {has}, the LivePhoto checkpoint takes {most} at once: make its batch "
            f"{fix if clips == 1 else f'{most * clips} or less'}"
        )
    places, length = None, frames
    if window is not None:
        if not getattr(window, "total_frames", 0):
            raise LivePhotoError(
                "these context windows do not say how long the whole clip is: put LivePhoto Context Windows in place of their node"
            )
        places, length = torch.tensor(places_of(window)), window.total_frames
    levels = host.motion.levels(clips, length)
    condition = ClipCondition(
        host.latent, host.reference.tokens, host.reference.grid, levels if places is None else levels[:, places], places, length
    )
    return condition.repeated(chunks)


def window_of(options: dict) -> Any | None:
    """The window of the clip that a UNet call is for: ComfyUI's own, or AnimateDiff-Evolved's; None for a whole clip."""
    if (window := options.get("context_window")) is not None:
        return window
    told = options.get("ad_params") or {}
    if told.get("sub_idxs") is None:
        return None
    return SimpleNamespace(index_list=list(told["sub_idxs"]), total_frames=told["full_length"])


def _around_model(host: Host) -> Callable:
    # newer ComfyUI compiles a UNet without looking whether its options are the same: what the compiled code takes from them for
    # constant is told in a text of its own beside them
    def wrapper(executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, control: Any, transformer_options: dict, **kwargs):
        window = window_of(transformer_options)
        told = [host.name, len(transformer_options.get("cond_or_uncond") or [0]), window and places_of(window)]
        kwargs[KEY] = str(told)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    return wrapper


def _around_call(host: Host, content: dict[tuple[str, int], str]) -> Callable:
    before, after = _content_patches(host, content)

    def outermost(options: dict) -> dict:
        """With ours around other packs' patches: some widen the batch in one and bring it back in the other."""
        patches = options.get("patches", {})
        ours = {
            "attn2_patch": [before, *patches.get("attn2_patch", ())],
            "attn2_output_patch": [*patches.get("attn2_output_patch", ()), after],
        }
        return {**options, "patches": {**patches, **ours}}

    def wrapper(executor: Any, x: torch.Tensor, timesteps: Any, context: Any, y: Any, control: Any, options: dict, **kwargs: Any):
        # looked at: what compiled code never looks at, it is not compiled anew for
        len(kwargs.pop(KEY, ""))
        chunks = len(options.get("cond_or_uncond") or [0])
        condition = condition_of(host, len(x), chunks, window_of(options))
        if condition.latent.shape[2:] != x.shape[2:]:
            asked, found = (f"{s[1]}x{s[0]}" for s in (x.shape[2:], condition.latent.shape[2:]))
            raise LivePhotoError(
                f"the latent is {asked}, the reference photo's latent {found}: give both the same size "
                "(the LATENT of Encode Reference Photo has it); conditioning for an "
                "area cuts the latent and does not go with LivePhoto"
            )
        condition = replace(condition, latent=condition.latent.to(x), levels=condition.levels.to(x.device))
        host.call = Call(condition, _photo(host, chunks, x))
        # an adapter trained without content attention has no sites
        options = outermost(options) if content else options
        try:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        finally:
            host.call = None

    return wrapper


def _around_sampling(host: Host) -> Callable:
    # here the rows of the texts are still as they came, in a UNet call they have been repeated or cut
    def wrapper(executor: Any, noise: torch.Tensor, *args: Any, **kwargs: Any):
        config, guider, clips = host.adapter.config, executor.class_obj, len(host.latent)
        frames_of(len(noise), clips)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        check_predicted(sampling, config)
        check_schedule(sampling, config.schedule)
        check_texts(guider.conds, len(noise), clips, config.base.context_width)
        check_hints(guider.conds, len(noise), clips)
        try:
            return executor(_shared(noise, host), *args, **kwargs)
        finally:
            host.photos.clear()

    return wrapper


def _shared(noise: torch.Tensor, host: Host) -> torch.Tensor:
    """Noise [(clips F), C, h, w], each frame's own, with the share in common that the checkpoint says."""
    clips, config = len(host.latent), host.adapter.config
    levels = host.motion.levels(clips, len(noise) // clips)
    own = rearrange(noise, "(b f) ... -> b f ...", b=clips)
    shared = share_noise(own, noise_shares(config, levels))
    return rearrange(shared, "b f ... -> (b f) ...")


def _photo(host: Host, chunks: int, like: torch.Tensor) -> dict[str, KeysValues]:
    """The photos' keys and values for so many conds, computed at the first call of a sampling, compiled at each."""
    if torch.compiler.is_compiling():
        return _for_conds(_keys_values(host, like), host, chunks)
    key = like.device, like.dtype
    if key not in host.photos:
        host.photos[key] = _keys_values(host, like)
    if (chunks, *key) not in host.photos:
        host.photos[(chunks, *key)] = _for_conds(host.photos[key], host, chunks)
    return host.photos[(chunks, *key)]


def _keys_values(host: Host, like: torch.Tensor) -> dict[str, KeysValues]:
    return host.adapter.photo_keys_values(host.reference.tokens.to(like), host.reference.grid)


def _for_conds(photos: dict[str, KeysValues], host: Host, chunks: int) -> dict[str, KeysValues]:
    # one photo serves all conds: no place looks at what another one does
    if len(host.latent) == 1:
        return photos
    return {
        site: KeysValues(*(repeat(part, "b ... -> (t b) ...", t=chunks) for part in (kv.keys, kv.values)))
        for site, kv in photos.items()
    }


def _stem_patch(host: Host) -> Callable:
    def patch(h: torch.Tensor, options: dict) -> torch.Tensor:
        if options["block"] != ("input", 0):
            return h
        if host.call is None:
            raise LivePhotoError(
                "another node calls the parts of the UNet itself, past LivePhoto (DeepCache and the like): take it out"
            )
        condition = host.call.condition
        channels = stem_channels(condition.latent, condition.position, condition.levels)
        return h + host.image_strength * host.adapter.stem(channels.to(h))

    return patch


def _content_patches(host: Host, sites: dict[tuple[str, int], str]) -> tuple[Callable, Callable]:
    """Before a text cross-attention its hidden states are kept, behind it the photo's part is added."""

    def before(hidden: torch.Tensor, context: Any, value: Any, options: dict):
        host.call.hidden = hidden
        return hidden, context, value

    def after(output: torch.Tensor, options: dict) -> torch.Tensor:
        site, hidden = sites[tuple(options["block"])], host.call.hidden
        grid = tuple(options["activations_shape"][2:])
        return output + host.image_strength * host.adapter.content[site](hidden, grid, host.call.photo[site])

    return before, after


def _motion_injection(host: Host, sites: dict[str, tuple[str, int]]) -> comfy.patcher_extension.PatcherInjection:
    # clone() copies is_injected, so that a clone may eject what it never injected: the hooks stay while another one needs them
    def eject(patcher: Any) -> None:
        hooks = host.hooks.get(patcher.model.diffusion_model, Hooks())
        hooks.users.discard(patcher)
        if not hooks.users:
            for handle in hooks.handles:
                handle.remove()
            hooks.handles.clear()

    def inject(patcher: Any) -> None:
        unet = patcher.model.diffusion_model
        hooks = host.hooks.setdefault(unet, Hooks())
        if not hooks.users:
            for site, block in sites.items():
                hooks.handles.append(_motion_host(unet, block).register_forward_hook(_motion_hook(host, site)))
        hooks.users.add(patcher)

    return comfy.patcher_extension.PatcherInjection(inject=inject, eject=eject)


def _motion_hook(host: Host, site: str) -> Callable:
    module = host.adapter.motion[site]

    def hook(_: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        # None leaves the output as it is: this UNet now runs for another MODEL
        if host.call is None:
            return None
        return output + host.motion_strength * module(output, host.call.condition.frames)

    return hook
