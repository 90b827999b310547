"""Public AnimateDiff motion modules as a warm start of the adapter's own (arXiv 2307.04725).

v1 files have 24 positions and no module in the middle block, v2 32 and one, v3 32 and none; all of them the same names.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import ADAPTER, looks_like, opened
from .config import MotionShape
from .errors import LivePhotoError, first_line
from .model.adapter import LivePhotoAdapter

_SITE = re.compile(r"((?:(?:down|up)_blocks\.\d+|mid_block)\.motion_modules\.\d+)\.temporal_transformer\.(.+)")
_TABLE = ".pos_encoder.pe"
_SHOWN = 6


@dataclass(frozen=True)
class MotionReport:
    """What became of a motion module's tensors, by name.

    taken: copied into the adapter.
    missing: the adapter has them, the file does not; they stay as they were.
    unused: the file has them, the adapter does not.
    misshapen: in both, with shapes that do not match; they stay as they were. Each with both shapes.
    positions: what was done about position tables of another length; "" if they are equally long.
    """

    path: Path
    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    misshapen: tuple[str, ...]
    positions: str

    def summary(self) -> str:
        """The report in a few lines; names are gathered by motion module."""
        wanted = len(self.taken) + len(self.missing) + len(self.misshapen)
        lines = [f"{self.path.name}: {len(self.taken)} of the adapter's {wanted} motion tensors taken"]
        if self.positions:
            lines.append(f"  positions: {self.positions}")
        lines += _gathered("not in the file, left as they were", self.missing)
        lines += _gathered("in the file, not used", self.unused)
        if self.misshapen:
            lines.append(f"  another shape, left as they were ({len(self.misshapen)}):")
            lines += [f"    {line}" for line in _cut(self.misshapen)]
        return "\n".join(lines)


def load_motion(path: str | os.PathLike, adapter: LivePhotoAdapter) -> MotionReport:
    """Copy a motion module's weights into `adapter.motion`, name by name; nothing is copied if this raises.

    Of a position table longer than the adapter's the first rows are taken; a shorter one fills the first rows, and the rest
    stay the fixed sinusoids that every such table holds.

    Raises:
        LivePhotoError: unreadable, no motion module, or one for a UNet of other widths (SDXL).
    """
    path = Path(path)
    theirs, others = _read(path)
    ours = adapter.motion.state_dict()
    _check_widths(path, theirs, ours)
    taken, misshapen, pairs = [], [], []
    for name in ours.keys() & theirs.keys():
        target, source = ours[name], theirs[name]
        if name.endswith(_TABLE) and source.ndim == 3 and source.shape[2] == target.shape[2]:
            rows = min(source.shape[1], target.shape[1])
            target, source = target[:, :rows], source[:, :rows]
        if target.shape != source.shape:
            misshapen.append(f"{name} {list(source.shape)}, expected {list(target.shape)}")
            continue
        taken.append(name)
        pairs.append((target, source))
    positions = _positions_line(theirs, ours)
    # The state dict's tensors share the adapter's memory.
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)
    return MotionReport(
        path=path,
        taken=tuple(sorted(taken)),
        missing=tuple(sorted(ours.keys() - theirs.keys())),
        unused=tuple(sorted([*(theirs.keys() - ours.keys()), *others])),
        misshapen=tuple(sorted(misshapen)),
        positions=positions,
    )


def motion_shape_of(path: str | os.PathLike) -> MotionShape:
    """The MotionShape that takes every tensor of a motion module.

    A file does not tell its number of heads; all public ones have 8.

    Raises:
        LivePhotoError: as `load_motion`, but widths are not checked.
    """
    tensors, _ = _read(Path(path))

    def count(part: str) -> int:
        numbers = [int(found[1]) for name in tensors if (found := re.search(rf"\.{part}\.(\d+)\.", name))]
        return max(numbers, default=0) + 1

    tables = [tensor.shape[1] for name, tensor in tensors.items() if name.endswith(_TABLE)]
    return MotionShape(
        heads=MotionShape().heads,
        depth=count("transformer_blocks"),
        attention_blocks=count("attention_blocks"),
        max_frames=max(tables, default=MotionShape().max_frames),
        mid_block=any(name.startswith("mid_block.") for name in tensors),
    )


def _read(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The motion tensors of a file under AnimateDiff's names, and the names of all that is none."""
    tensors = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    motion, others = {}, []
    for name, tensor in tensors.items():
        plain = name.removeprefix("module.")
        if _SITE.fullmatch(plain):
            motion[plain] = tensor
        else:
            others.append(name)
    if not motion:
        raise LivePhotoError(f"{path} holds no AnimateDiff motion module{_guess(tensors)}")
    if not any(name.startswith("up_blocks.") for name in motion):
        raise LivePhotoError(
            f"{path} has motion modules only on the way down, as a SparseCtrl has: give a whole one such as v3_sd15_mm.ckpt"
        )
    return motion, others


def _guess(names: Mapping[str, torch.Tensor]) -> str:
    """What a file is instead, and the fix."""
    kind, fix = looks_like(names.keys()), "give a file such as v3_sd15_mm.ckpt"
    if kind == ADAPTER:
        return f", it looks like {kind}: give it as start_adapter"
    if any("motion_modules." in name for name in names):
        return f", its names are diffusers' or another tool's and not the original ones: {fix}"
    return f", it looks like {kind}: {fix}" if kind else f": {fix}"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise LivePhotoError(f"{path} {state}: give the path of a .ckpt or .safetensors file")
    try:
        # Only zip files can be mapped; the oldest ones are plain pickles.
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise LivePhotoError(f"cannot read {path}: {error.strerror or first_line(error)}; check its permissions") from error
    except pickle.UnpicklingError as error:
        # torch's own words advise to run the code in the file
        raise LivePhotoError(
            f"{path} is no readable .ckpt: it is damaged, or holds more than tensors, and code in checkpoints is never run; "
            "get it again, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise LivePhotoError(
            f"{path} is no readable .ckpt ({first_line(error)}): it is incomplete or damaged; get it again, best as .safetensors"
        ) from error
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values = values["state_dict"]
    if not isinstance(values, Mapping):
        raise LivePhotoError(f"{path} holds a {type(values).__name__}, not named tensors: give a file such as v3_sd15_mm.ckpt")
    return {str(name): value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _check_widths(path: Path, theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> None:
    found, expected = _widths(theirs), _widths(ours)
    if found != expected:
        raise LivePhotoError(
            f"{path} is a motion module for a UNet of widths {found}, the adapter's are {expected}: "
            "give one for Stable Diffusion v1.5"
        )


def _widths(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The channels at each level on the way down."""
    levels = {}
    for name, tensor in tensors.items():
        if name.startswith("down_blocks.") and name.endswith(".temporal_transformer.norm.weight"):
            levels[int(name.split(".")[1])] = tensor.shape[0]
    return tuple(width for _, width in sorted(levels.items()))


def _positions_line(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> str:
    tables = [name for name in ours if name.endswith(_TABLE) and name in theirs and theirs[name].ndim == 3]
    lengths = {(theirs[name].shape[1], ours[name].shape[1]) for name in tables}
    if all(found == wanted for found, wanted in lengths):
        return ""
    found, wanted = min(lengths)
    if found > wanted:
        return f"the first {wanted} of the file's {found} rows taken"
    error = max(_difference(theirs[name], ours[name]) for name in tables)
    # half precision keeps sinusoids to 5e-4
    fits = "which continue it" if error < 1e-3 else f"though the file's differ from those by up to {error:.2g}"
    return f"{found} rows taken from the file, the other {wanted - found} are the fixed sinusoids, {fits}"


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    rows = min(a.shape[1], b.shape[1])
    if a.shape[2] != b.shape[2] or rows == 0:
        return 0.0
    return (a[:, :rows].float() - b[:, :rows].float()).abs().max().item()


def _gathered(title: str, names: tuple[str, ...]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        site = _SITE.fullmatch(name)
        place = site[1] if site else name
        counts[place] = counts.get(place, 0) + 1
    if not counts:
        return []
    places = [place if count == 1 else f"{place} ({count} tensors)" for place, count in counts.items()]
    return [f"  {title} ({len(names)}):", *(f"    {line}" for line in _cut(places))]


def _cut(lines: tuple[str, ...] | list[str]) -> list[str]:
    shown = list(lines[:_SHOWN])
    return shown if len(lines) <= _SHOWN else [*shown, f"and {len(lines) - _SHOWN} more"]
