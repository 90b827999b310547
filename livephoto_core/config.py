"""What a LivePhoto checkpoint is: the adapter's shape, the noise schedule and the intensity levels it was trained with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from .errors import LivePhotoError
from .noise import check_share, share_at

FORMAT_VERSION = 1
FAMILY = "sd15"
INTENSITY_SOURCES = ("frames", "reconstruction")
INTENSITY_MEASURES = ("ssim", "mse", "flow")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class BaseShape:
    """The UNet that an adapter fits. Defaults: Stable Diffusion v1.5."""

    latent_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    block_attention: tuple[bool, ...] = (True, True, True, False)
    context_width: int = 768
    norm_groups: int = 32


@dataclass(frozen=True)
class MotionShape:
    """AnimateDiff's motion modules: `max_frames` positions, transformer depth, attention blocks in each."""

    heads: int = 8
    depth: int = 1
    attention_blocks: int = 2
    max_frames: int = 32
    mid_block: bool = True


@dataclass(frozen=True)
class ContentShape:
    """The image branch: which encoder's patch tokens, and the attention onto them.

    `positions` is "rope" (queries and keys know their place in the picture, so that one place can fetch from another) or
    "none"; with rope, `centred` lets a place tell round what it turns and scales its look. `encoder` and `image_size` name the
    patch encoder and the side in pixels of the picture it is given.
    """

    encoder: str = "facebook/dinov2-large"
    image_size: int = 518
    patch_size: int = 14
    token_width: int = 1024
    width: int = 768
    heads: int = 8
    head_width: int = 64
    positions: str = "rope"
    centred: bool = True


@dataclass(frozen=True)
class ReweightShape:
    """The text re-weighter: transformer encoder layers over the text, then a weight a token and frame (paper section 3.5)."""

    layers: int = 3
    heads: int = 12


@dataclass(frozen=True)
class Parts:
    """Which of LivePhoto's parts an adapter has, for ablations; one that it was trained without adds nothing, in any host.

    Without `intensity` or `frame_embedding` the stem reads that channel as zero, without `content` there is no content attention,
    without `reweight` every token counts fully.
    """

    intensity: bool = True
    frame_embedding: bool = True
    content: bool = True
    reweight: bool = True

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the parts that are left out."""
        return tuple(f.name for f in fields(self) if not getattr(self, f.name))


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas that the adapter was trained on. "linear" for AnimateDiff warm starts, "scaled_linear" as SD1.5's own."""

    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000


@dataclass(frozen=True)
class AdapterConfig:
    """A whole LivePhoto checkpoint's config; stored as JSON in its safetensors metadata.

    `size` and `frame_stride` are those of training (pixels; source frames a step). `ssim_thresholds` are the nine falling SSIM
    values between the ten intensity levels, empty before calibration. `intensity_from` says of what: of the clips' "frames", or of
    their VAE "reconstruction"; a checkpoint that does not say so was measured on frames. `intensity_measure` says by what: by
    "ssim", or by another measure of measures.py, whose similarity the thresholds are then values of. `shared_noise` is the share
    of the noise that frames have in common at level 10, `shared_noise_still` that at level 1, see `noise_shares`: 0 and 0 as in the
    paper, 0 for `shared_noise_still` alone is `shared_noise` at all levels. `prediction_type` is what the base
    predicted in training, one of PREDICTION_TYPES; a checkpoint with an empty one does not say.
    """

    base: BaseShape = field(default_factory=BaseShape)
    motion: MotionShape = field(default_factory=MotionShape)
    content: ContentShape = field(default_factory=ContentShape)
    reweight: ReweightShape = field(default_factory=ReweightShape)
    parts: Parts = field(default_factory=Parts)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    frames: int = 16
    size: int = 256
    frame_stride: int = 4
    ssim_thresholds: tuple[float, ...] = ()
    intensity_from: str = "frames"
    intensity_measure: str = "ssim"
    shared_noise: float = 0.0
    shared_noise_still: float = 0.0
    prediction_type: str = ""
    family: str = FAMILY
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check(self)


def check(config: AdapterConfig) -> None:
    """Refuse a config that cannot be built.

    Raises:
        LivePhotoError: names the field, its value and what it may be.
    """
    _check_format(config.family, config.format_version)
    for part in _SECTIONS:
        _check_counts(getattr(config, part), f"{part}.")
    _check_counts(config, "")
    _check_divisible("motion.heads", config.motion.heads, config.base.block_channels)
    _check_divisible("base.norm_groups", config.base.norm_groups, config.base.block_channels)
    _check_divisible("reweight.heads", config.reweight.heads, (config.base.context_width,))
    if len(config.base.block_channels) != len(config.base.block_attention):
        raise LivePhotoError(
            f"base.block_channels has {len(config.base.block_channels)} levels, base.block_attention "
            f"{len(config.base.block_attention)}: they must be equally long"
        )
    if config.schedule.kind not in ("linear", "scaled_linear"):
        raise LivePhotoError(f"schedule.kind is {config.schedule.kind!r}; use 'linear' or 'scaled_linear'")
    if not 0 < config.schedule.beta_start <= config.schedule.beta_end < 1:
        raise LivePhotoError(
            f"schedule.beta_start is {config.schedule.beta_start}, beta_end {config.schedule.beta_end}; "
            "they must rise between 0 and 1"
        )
    if config.content.positions not in ("rope", "none"):
        raise LivePhotoError(f"content.positions is {config.content.positions!r}; use 'rope' or 'none'")
    if config.content.positions == "rope" and config.content.head_width % 4:
        raise LivePhotoError(f"content.head_width is {config.content.head_width}; rope needs a multiple of 4")
    if not 2 <= config.frames <= config.motion.max_frames:
        raise LivePhotoError(f"frames is {config.frames}; use 2 to {config.motion.max_frames} (motion.max_frames)")
    check_intensity_source("intensity_from", config.intensity_from)
    check_intensity_measure("intensity_measure", config.intensity_measure)
    if config.prediction_type not in ("", *PREDICTION_TYPES):
        raise LivePhotoError(f"prediction_type is {config.prediction_type!r}; use {' or '.join(map(repr, PREDICTION_TYPES))}")
    check_share("shared_noise", config.shared_noise)
    check_share("shared_noise_still", config.shared_noise_still)
    if 0 < config.shared_noise_still < config.shared_noise:
        raise LivePhotoError(
            f"shared_noise_still is {config.shared_noise_still:g}, less than shared_noise {config.shared_noise:g}: use 0 for the "
            "same share at all levels, or more"
        )
    thresholds = config.ssim_thresholds
    falling = all(math.isfinite(t) for t in thresholds) and list(thresholds) == sorted(thresholds, reverse=True)
    if thresholds and (len(thresholds) != 9 or not falling):
        raise LivePhotoError(
            f"ssim_thresholds must be nine falling SSIM values, got {list(thresholds)}: calibrate again"
        )


def still_share(config: AdapterConfig) -> float:
    """The share of the noise at level 1, 0 where all levels have the same: as for weights that know no levels."""
    return config.shared_noise_still if config.parts.intensity else 0.0


def noise_shares(config: AdapterConfig, levels: torch.Tensor) -> torch.Tensor:
    """The share of the noise that frames at motion levels [...] have in common, see noise.py."""
    return share_at(levels, config.shared_noise, still_share(config))


def check_prediction(config: AdapterConfig, found: str, fix: str) -> None:
    """Refuse a base that predicts something else than the one that the adapter was trained on: the clip would be noise.

    Args:
        config: of a checkpoint; one that does not say what was predicted goes with any base.
        found: what the base predicts.
        fix: what to do.

    Raises:
        LivePhotoError: names both.
    """
    if config.prediction_type and found != config.prediction_type:
        raise LivePhotoError(
            f"the LivePhoto checkpoint was trained on a base that predicts {config.prediction_type}, this one predicts {found}: "
            f"{fix}"
        )


def check_intensity_source(name: str, value: str) -> None:
    """Refuse anything but one of INTENSITY_SOURCES.

    Raises:
        LivePhotoError: names the field and its value.
    """
    if value not in INTENSITY_SOURCES:
        raise LivePhotoError(f"{name} is {value!r}; use {' or '.join(map(repr, INTENSITY_SOURCES))}")


def check_intensity_measure(name: str, value: str) -> None:
    """Refuse anything but one of INTENSITY_MEASURES.

    Raises:
        LivePhotoError: names the field and its value.
    """
    if value not in INTENSITY_MEASURES:
        raise LivePhotoError(f"{name} is {value!r}; use {', '.join(map(repr, INTENSITY_MEASURES))}")


def _check_format(family: Any, version: Any) -> None:
    if family != FAMILY:
        raise LivePhotoError(f"this is a LivePhoto checkpoint of the family {family!r}; only {FAMILY!r} is known here")
    if version != FORMAT_VERSION:
        raise LivePhotoError(
            f"the checkpoint's format version is {version}, this code reads {FORMAT_VERSION}: update ComfyUI-LivePhoto"
        )


def _check_counts(part: Any, where: str) -> None:
    for f in fields(part):
        value = getattr(part, f.name)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if type(number) is int and number < 1:
                raise LivePhotoError(f"{where}{f.name} is {number}; it must be 1 or more")


def _check_divisible(name: str, divisor: int, widths: tuple[int, ...]) -> None:
    for width in widths:
        if width % divisor:
            raise LivePhotoError(f"{name} is {divisor}, which does not divide the width {width}")


def to_json(config: AdapterConfig) -> str:
    """The config as JSON, with sorted keys, so that equal configs are equal text."""
    return json.dumps(asdict(config), sort_keys=True)


def from_dict(values: dict[str, Any]) -> AdapterConfig:
    """A config from plain values; what is left out keeps its default.

    Raises:
        LivePhotoError: an unknown name or a value of the wrong kind.
    """
    return _build(AdapterConfig, values, "config")


def from_json(text: str) -> AdapterConfig:
    """The config out of a checkpoint's metadata.

    Raises:
        LivePhotoError: not JSON, or not a config.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise LivePhotoError(
            f"the checkpoint's config is not JSON ({error}): the file is damaged, get it again"
        ) from error
    if isinstance(values, dict):
        # Before the names: another family or a later version has names of its own.
        _check_format(values.get("family", FAMILY), values.get("format_version", FORMAT_VERSION))
        content = values.get("content", {})
        if isinstance(content, dict):
            # a checkpoint that does not say so was made before there were centres
            values = {**values, "content": {"centred": False, **content}}
    return from_dict(values)


_SECTIONS = {
    "base": BaseShape,
    "motion": MotionShape,
    "content": ContentShape,
    "reweight": ReweightShape,
    "parts": Parts,
    "schedule": NoiseSchedule,
}


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise LivePhotoError(f"{where} must be a table of values, got {values!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise LivePhotoError(f"{where} has unknown names {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    built = {}
    for name, value in values.items():
        place = f"{where}.{name}"
        if name in _SECTIONS and kind is AdapterConfig:
            built[name] = _build(_SECTIONS[name], value, place)
        else:
            built[name] = _plain(value, known[name].default, place)
    return kind(**built)


def _plain(value: Any, default: Any, where: str) -> Any:
    """A value of the same type as the default; lists become tuples, whole numbers may stand for fractions."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        # The thresholds' default is empty.
        like = default[0] if default else 0.0
        return tuple(_plain(entry, like, f"{where}[{i}]") for i, entry in enumerate(value))
    if type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    kind = "list" if isinstance(default, tuple) else type(default).__name__
    raise LivePhotoError(f"{where} is {value!r}; it must be of type {kind}")


def motion_sites(base: BaseShape, mid_block: bool) -> dict[str, int]:
    """Where motion modules sit, in AnimateDiff's names, and the channels there."""
    channels = base.block_channels
    sites = {
        f"down_blocks.{i}.motion_modules.{j}": c for i, c in enumerate(channels) for j in range(base.layers_per_block)
    }
    if mid_block:
        sites["mid_block.motion_modules.0"] = channels[-1]
    for i, c in enumerate(reversed(channels)):
        sites.update({f"up_blocks.{i}.motion_modules.{j}": c for j in range(base.layers_per_block + 1)})
    return sites


def content_sites(base: BaseShape) -> dict[str, int]:
    """Where content attention sits: each spatial transformer, in diffusers' names, and the channels there."""
    channels, attends = base.block_channels, base.block_attention
    sites = {}
    for i, c in enumerate(channels):
        if attends[i]:
            sites.update({f"down_blocks.{i}.attentions.{j}": c for j in range(base.layers_per_block)})
    sites["mid_block.attentions.0"] = channels[-1]
    for i, (c, attend) in enumerate(zip(reversed(channels), reversed(attends), strict=True)):
        if attend:
            sites.update({f"up_blocks.{i}.attentions.{j}": c for j in range(base.layers_per_block + 1)})
    return sites
