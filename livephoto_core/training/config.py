"""What a training run is: read from a TOML or YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import AdapterConfig, from_dict
from ..errors import LivePhotoError


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from. kind: "folder" (clips and a CSV), "webdataset" (.tar shards) or "cache" (made before).

    `held_out` clips, the first of the source, are kept from training for the validation figures. `intensity_from` says on what
    the level is measured: "frames", or their VAE "reconstruction", which a small VAE needs, since it is what a user will see.
    """

    kind: str = "folder"
    path: str = ""
    csv: str = ""
    cache: str = ""
    held_out: int = 32
    intensity_from: str = "frames"


@dataclass(frozen=True)
class RunConfig:
    """A training run; the defaults are the paper's recipe (section 4.1) for a frozen SD1.5.

    `batch` counts clips over all processes and accumulated steps. `frames_per_clip` trains on that many frames drawn from each
    clip, 0 for all. `motion_weight` raises the loss where the clip moves (MotiF), 0 is the paper's plain mean. `rate_factors`
    multiplies the learning rate of parameters whose name starts with the key.
    """

    base: str = ""
    out: str = "runs/livephoto"
    image_encoder: str = ""
    motion_modules: str = ""
    start_adapter: str = ""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    freeze_base: bool = True
    steps: int = 100_000
    batch: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    rate_factors: dict[str, float] = field(default_factory=lambda: {"adapter.reweight": 0.1})
    warmup: int = 500
    decay_from: float = 1.0
    clip_gradients: float = 1.0
    text_drop: float = 0.5
    frames_per_clip: int = 0
    motion_weight: float = 0.0
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
    return run_from_dict(_parse(path))


def run_from_dict(values: dict[str, Any]) -> RunConfig:
    """A run from plain values, checked."""
    values = dict(values)
    known = {f.name for f in fields(RunConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise LivePhotoError(f"the training config has unknown names {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if "adapter" in values:
        values["adapter"] = from_dict(values["adapter"])
    if "data" in values:
        known_data = {f.name for f in fields(DataConfig)}
        unknown = sorted(set(values["data"]) - known_data)
        if unknown:
            known = ", ".join(sorted(known_data))
            raise LivePhotoError(f"the training config's data has unknown names {', '.join(unknown)}; known: {known}")
        values["data"] = DataConfig(**values["data"])
    if "sample_texts" in values:
        values["sample_texts"] = tuple(values["sample_texts"])
    run = RunConfig(**values)
    _check(run)
    return run


def _check(run: RunConfig) -> None:
    if not run.base:
        raise LivePhotoError("the training config names no base: set base to a diffusers folder or an SD1.5 checkpoint")
    if run.mixed_precision not in ("no", "fp16", "bf16"):
        raise LivePhotoError(f"mixed_precision is {run.mixed_precision!r}; use 'no', 'fp16' or 'bf16'")
    if run.data.kind not in ("folder", "webdataset", "cache"):
        raise LivePhotoError(f"data.kind is {run.data.kind!r}; use 'folder', 'webdataset' or 'cache'")
    if run.data.intensity_from not in ("frames", "reconstruction"):
        raise LivePhotoError(f"data.intensity_from is {run.data.intensity_from!r}; use 'frames' or 'reconstruction'")
    if run.batch % run.accumulate:
        raise LivePhotoError(f"batch {run.batch} is not a multiple of accumulate {run.accumulate}")
    for name in ("text_drop", "ema", "decay_from"):
        if not 0 <= getattr(run, name) <= 1:
            raise LivePhotoError(f"{name} is {getattr(run, name)}; use 0 to 1")
    if run.frames_per_clip and not 2 <= run.frames_per_clip <= run.adapter.frames:
        raise LivePhotoError(f"frames_per_clip is {run.frames_per_clip}; use 0 or 2 to {run.adapter.frames}")


def _parse(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
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
