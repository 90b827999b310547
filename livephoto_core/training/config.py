"""What a training run is: read from a TOML or YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import AdapterConfig, check_intensity_measure, check_intensity_source, from_dict
from ..errors import LivePhotoError
from ..noise import check_share

# a share of the noise is 0..1
AS_THE_ADAPTER_SAYS = -1.0
NOISE_SHARES = ("shared_noise", "shared_noise_still")


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from. kind: "folder" (clips and a CSV), "webdataset" (.tar shards), "procedural" (drawn over still
    photographs, in the demo's motions and phrasings) or "cache" (made before).

    Of "procedural" there are `clips` clips; `path` is then a folder of photographs, empty for those of the photo packages.

    `held_out` clips, the first of the source, are kept from training for the validation figures. `intensity_from` says on what
    the level is measured: "frames", or their VAE "reconstruction", which a small VAE needs, since it is what a user will see. A
    "cache" that knows on what its levels were measured overrules it; the checkpoint keeps it.

    `intensity_measure` says by what the level is measured: "ssim" (the paper's), "mse" or "flow" (measures.py); empty: as the
    adapter says, "ssim" where that says nothing. It may name no other than the adapter's. A level then asks for as much of that
    measure; the checkpoint keeps it. The clips of a "cache" measured otherwise are measured again, as the VAE restores them, into
    the folder `cache` (OUT/cache if it is empty).

    A run may learn from a part of the clips: those of `least_level` or more whose caption has one of `words` (none: any caption).
    A small model that sees a few strong motions first tells left from right in hundreds of steps instead of thousands. `repeats`
    has words, and how many times an epoch a clip with that word in its caption is met: the largest of several, once without any.
    Clips with one of `unguessed` in their caption are never seen as the model's `own_guesses`: what no text tells, such as when a
    light flickers, those average away.

    `fine_levels` tells each clip's fractional level (intensity.fractional_level), the paper the whole one: which of all clips of a
    level to make cannot be known then, and what is made is their mean.
    """

    kind: str = "folder"
    path: str = ""
    csv: str = ""
    cache: str = ""
    clips: int = 4096
    held_out: int = 32
    intensity_from: str = "frames"
    intensity_measure: str = ""
    least_level: int = 1
    words: tuple[str, ...] = ()
    repeats: dict[str, float] = field(default_factory=dict)
    unguessed: tuple[str, ...] = ()
    fine_levels: bool = False


@dataclass(frozen=True)
class RunConfig:
    """A training run; the defaults are the paper's recipe (section 4.1) for a frozen SD1.5.

    `batch` counts clips over all processes and accumulated steps. `frames_per_clip` trains on that many frames drawn from each
    clip, 0 for all. `motion_weight`, `first_frame_weight`, `padding_penalty` and `word_penalty` are those of model.LossWeights; at
    their defaults the loss is the paper's plain mean. `timestep_shift` above 1 draws more of the noisy timesteps, where motion is
    decided. `shared_noise` is the share of the noise that frames have in common (noise.py); the checkpoint keeps it for level 10,
    and `shared_noise_still`, on which nothing is trained, for level 1. 0 is the paper's, -1 what the adapter says, and
    `shared_noise` alone is for all levels. `pure_noise` is the share of clips of which the UNet sees pure noise at the last
    timestep, as sampling starts: the little that a schedule leaves of a clip there tells its motion, and the text need not be read
    (after Lin et al., arXiv 2305.08891). `own_guesses` is the share of clips of which it sees, noised again, what it makes of pure
    noise, and is to make the clip all the same: sampling goes on from such guesses, which training on clips alone never shows
    (exposure bias, Ning et al., arXiv 2301.11706). It takes one more pass through the UNet, without gradients. Both are for a base
    that predicts v.

    Without `freeze_base` the UNet and the text encoder train too, and `out` is then a whole base folder. `optimizer` is "adamw", or
    "muon": Muon for the matrices of hidden layers and AdamW for the rest, at one learning rate. `rate_factors` multiplies the
    learning rate of parameters whose name starts with the key. 0 for `validate_every` or `sample_every` is never.

    `image_encoder` and `tokenizer` are folders, for a base without its own; a single-file base has neither. `start_adapter` is a
    checkpoint to start from; its config counts then. `motion_modules` is an AnimateDiff file to start from; with adapter.motion
    left at its defaults, the file's own shape is taken.
    """

    base: str = ""
    out: str = "runs/livephoto"
    image_encoder: str = ""
    tokenizer: str = ""
    motion_modules: str = ""
    start_adapter: str = ""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    freeze_base: bool = True
    steps: int = 100_000
    batch: int = 8
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    rate_factors: dict[str, float] = field(default_factory=lambda: {"adapter.reweight": 0.1})
    warmup: int = 500
    decay_from: float = 1.0
    clip_gradients: float = 1.0
    text_drop: float = 0.5
    frames_per_clip: int = 0
    motion_weight: float = 0.0
    first_frame_weight: float = 1.0
    padding_penalty: float = 0.0
    word_penalty: float = 0.0
    timestep_shift: float = 1.0
    pure_noise: float = 0.0
    own_guesses: float = 0.0
    shared_noise: float = AS_THE_ADAPTER_SAYS
    shared_noise_still: float = AS_THE_ADAPTER_SAYS
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    validate_every: int = 500
    sample_every: int = 0
    sample_cfg: float = 4.0
    sample_texts: tuple[str, ...] = ()


def load_run(path: Path) -> RunConfig:
    """A run from a .toml, .yaml or .yml file.

    Raises:
        LivePhotoError: no such file, not that format, an unknown name or a value that cannot be.
    """
    if not path.is_file():
        raise LivePhotoError(f"there is no training config {path}: name a .toml or .yaml file")
    return run_from_dict(read_values(path))


def run_from_dict(values: dict[str, Any]) -> RunConfig:
    """A run from plain values, checked.

    Raises:
        LivePhotoError: an unknown name, a value of the wrong kind or one that cannot be, named.
    """
    if values.get("start_adapter") and "adapter" in values:
        raise LivePhotoError("the training config has start_adapter and adapter: leave adapter out, the checkpoint has its own")
    if values.get("start_adapter") and values.get("motion_modules"):
        raise LivePhotoError(
            "the training config has start_adapter and motion_modules, which would take the place of the checkpoint's trained "
            "motion modules: leave one of them out"
        )
    run = build_config(RunConfig, values, "the training config")
    _check(run)
    if run.start_adapter or {"intensity_measure", "ssim_thresholds"} & set(values.get("adapter", {})):
        return run
    # a new adapter that says nothing of its levels
    return replace(run, adapter=replace(run.adapter, intensity_measure=run.data.intensity_measure or "ssim"))


def without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """A run's plain values, or some of them, with paths by their last part alone: the rest tells of the machine."""
    data = {"data": _last_parts(values["data"], ("path", "csv", "cache"))} if "data" in values else {}
    return {**_last_parts(values, _PATHS), **data}


_PATHS = ("base", "out", "image_encoder", "tokenizer", "motion_modules", "start_adapter")


def _last_parts(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: Path(value).name if name in names else value for name, value in values.items()}


def check_frames(frames_per_clip: int, frames: int) -> None:
    """Refuse to draw more frames than a clip has, or one.

    Raises:
        LivePhotoError: names the value and what it may be.
    """
    if frames_per_clip and not 2 <= frames_per_clip <= frames:
        raise LivePhotoError(f"frames_per_clip is {frames_per_clip}; use 0 for all, or 2 to {frames}")


def check_measure(data: DataConfig, config: AdapterConfig) -> None:
    """Refuse clips measured by another measure than the adapter's levels are of.

    Raises:
        LivePhotoError: names both.
    """
    if data.intensity_measure not in ("", config.intensity_measure):
        raise LivePhotoError(
            f"data.intensity_measure is {data.intensity_measure!r}, the adapter's levels are of {config.intensity_measure!r}: "
            "leave data.intensity_measure out, or give an adapter with that measure"
        )


def build_config(kind: type, values: Any, file: str, where: str = "") -> Any:
    """A config dataclass from plain values, each of its default's kind; a tuple's entries are of the kind of its default's first.

    Args:
        kind: a dataclass whose fields all have defaults.
        values: names and values, as a TOML or YAML file gives them.
        file: what they come from, and `where`: their place in it; both for messages.

    Raises:
        LivePhotoError: an unknown name, or a value of the wrong kind, named.
    """
    if not isinstance(values, dict):
        raise LivePhotoError(f"{where} is {values!r}; it must be a table of names and values")
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    unknown = sorted(str(name) for name in values if name not in defaults)
    if unknown:
        place = f"{file}'s {where}" if where else file
        raise LivePhotoError(f"{place} has unknown names {', '.join(unknown)}; known: {', '.join(sorted(defaults))}")
    prefix = f"{where}." if where else ""
    return kind(**{name: _typed(value, defaults[name], file, f"{prefix}{name}") for name, value in values.items()})


def _typed(value: Any, default: Any, file: str, name: str) -> Any:
    """A value of the default's type, or a line that says what it must be."""
    if isinstance(default, AdapterConfig):
        try:
            return from_dict(value)
        except LivePhotoError as error:
            raise LivePhotoError(f"{file}'s adapter: {error}") from error
    if isinstance(default, DataConfig):
        return build_config(DataConfig, value, file, name)
    if isinstance(default, dict) and isinstance(value, dict):
        return {str(key): _typed(entry, 0.0, file, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_typed(entry, _first(default), file, f"{name}[{i}]") for i, entry in enumerate(value))
    if isinstance(default, float):
        number = _number(value)
        if number is not None:
            return number
    elif type(value) is type(default):
        return value
    wanted = f"a list of {_ENTRIES[type(_first(default))]}" if isinstance(default, tuple) else _KINDS[type(default)]
    raise LivePhotoError(f"{name} is {value!r}; it must be {wanted}")


def _first(default: tuple) -> Any:
    """What a tuple's entries are like: its first, or a text."""
    return default[0] if default else ""


_KINDS = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table of names and numbers",
}
_ENTRIES = {str: "texts", int: "whole numbers"}


def _number(value: Any) -> float | None:
    """A finite number, also as text: YAML takes 1e-4 for a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


_AT_LEAST_ONE = ("steps", "batch", "accumulate", "save_every")
_AT_LEAST_ZERO = (
    "weight_decay",
    "warmup",
    "clip_gradients",
    "motion_weight",
    "padding_penalty",
    "word_penalty",
    "frames_per_clip",
    "seed",
    "validate_every",
    "sample_every",
)
_SHARES = ("text_drop", "ema", "decay_from", "pure_noise", "own_guesses")


def _check(run: RunConfig) -> None:
    if not run.base:
        raise LivePhotoError("the training config names no base: set base to a diffusers folder or an SD1.5 checkpoint")
    if not run.out:
        raise LivePhotoError("out is ''; name the folder that the run is to be written to")
    for name in _AT_LEAST_ONE:
        if getattr(run, name) < 1:
            raise LivePhotoError(f"{name} is {getattr(run, name)}; use 1 or more")
    for name in _AT_LEAST_ZERO:
        if getattr(run, name) < 0:
            raise LivePhotoError(f"{name} is {getattr(run, name)}; use 0 or more")
    for name in NOISE_SHARES:
        if getattr(run, name) != AS_THE_ADAPTER_SAYS:
            check_share(name, getattr(run, name))
    for name in _SHARES:
        if not 0 <= getattr(run, name) <= 1:
            raise LivePhotoError(f"{name} is {getattr(run, name)}; use 0 to 1")
    if run.seed >= 2**63:
        raise LivePhotoError(f"seed is {run.seed}; use less than 2**63")
    if run.sample_cfg < 1:
        raise LivePhotoError(f"sample_cfg is {run.sample_cfg:g}; use 1 for no guidance, or more")
    if run.adapter.size % 8:
        raise LivePhotoError(f"adapter.size is {run.adapter.size}; use a multiple of 8")
    if run.timestep_shift <= 0:
        raise LivePhotoError(f"timestep_shift is {run.timestep_shift}; use more than 0, 1 for evenly drawn timesteps")
    if run.first_frame_weight <= 0:
        raise LivePhotoError(f"first_frame_weight is {run.first_frame_weight}; use more than 0, 1 to weigh all frames alike")
    if run.learning_rate <= 0:
        raise LivePhotoError(f"learning_rate is {run.learning_rate}; use more than 0, such as 1e-4")
    for name, factor in run.rate_factors.items():
        if factor < 0:
            raise LivePhotoError(f"rate_factors.{name} is {factor}; use 0 or more")
    if run.optimizer not in ("adamw", "muon"):
        raise LivePhotoError(f"optimizer is {run.optimizer!r}; use 'adamw' or 'muon'")
    if run.mixed_precision not in ("no", "fp16", "bf16"):
        raise LivePhotoError(f"mixed_precision is {run.mixed_precision!r}; use 'no', 'fp16' or 'bf16'")
    if run.batch % run.accumulate:
        raise LivePhotoError(f"batch {run.batch} is not a multiple of accumulate {run.accumulate}")
    # an adapter to start from is checked once it is read
    if not run.start_adapter:
        check_frames(run.frames_per_clip, run.adapter.frames)
    _check_data(run.data)


def _check_data(data: DataConfig) -> None:
    if data.kind not in ("folder", "webdataset", "procedural", "cache"):
        raise LivePhotoError(f"data.kind is {data.kind!r}; use 'folder', 'webdataset', 'procedural' or 'cache'")
    if data.clips < 1:
        raise LivePhotoError(f"data.clips is {data.clips}; use 1 or more, thousands to train on")
    check_intensity_source("data.intensity_from", data.intensity_from)
    if data.intensity_measure:
        check_intensity_measure("data.intensity_measure", data.intensity_measure)
    if data.held_out < 0:
        raise LivePhotoError(f"data.held_out is {data.held_out}; use 0 or more")
    if not 1 <= data.least_level <= 10:
        raise LivePhotoError(f"data.least_level is {data.least_level}; use 1 to 10")
    for word, times in data.repeats.items():
        if times < 1 or times % 1:
            raise LivePhotoError(f"data.repeats.{word} is {times:g}; use a whole number from 1, how many times an epoch")
    if not data.path and data.kind != "procedural":
        raise LivePhotoError("data.path is ''; name the folder of clips, the shards or the cache to train on")


def read_values(path: Path) -> dict[str, Any]:
    """The names and values in a .toml, .yaml or .yml file.

    Raises:
        LivePhotoError: it cannot be read, or is not that format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LivePhotoError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise LivePhotoError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    if path.suffix == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:  # Python 3.10
            import tomli as tomllib
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise LivePhotoError(f"{path} is not TOML: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise LivePhotoError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise LivePhotoError(f"{path} must hold names and values, got {type(values).__name__}")
        return values
    raise LivePhotoError(f"{path} ends in {path.suffix!r}: a training config is .toml, .yaml or .yml")
