"""`livephoto animate`: a photo, a text and one or more levels into one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..errors import LivePhotoError
from ..files import behind_link
from ..media import read_image
from ..media_write import check_clip_suffix, check_sides, contact_sheet, write_clip, write_picture
from ..pipeline import Settings, complete
from .model_files import DEMO, ModelFiles, load_model, read_model_config

# formats keep a frame's time in thousandths of a second; a slower clip is a slide show
LEAST_FPS, MOST_FPS = 0.1, 240.0
# browsers and readers take what is faster in a .gif, whose time has steps of 10 ms, for slow
GIF_FPS = 50.0


def animate(
    photo: str | Path,
    out: str | Path,
    settings: Settings,
    levels: Sequence[float],
    files: ModelFiles,
    fps: float = 8.0,
    device: str = "cpu",
) -> Path:
    """Animate a photo at each level and write one file, with everything that made it in the metadata.

    One level gives a clip, or as .png its contact sheet. Several give a sheet with a row a level, or in another format one
    clip with the levels side by side in the order given. All levels start from the same noise, as far as the
    checkpoint's frames do not share more of it at low levels.

    Returns:
        The path written.

    Raises:
        LivePhotoError: anything wrong with photo, settings, model or output; what can be checked is checked before any model
            is loaded.
    """
    out = Path(out)
    check_output(out, photo)
    most = GIF_FPS if out.suffix.lower() == ".gif" else MOST_FPS
    if not LEAST_FPS <= fps <= most:
        raise LivePhotoError(
            f"the frame rate of a {out.suffix.lower()} must be a number from {LEAST_FPS} to {most:g}, got {fps:g}; 8 is the default"
        )
    picture = read_image(photo)
    config = read_model_config(files)
    runs = [complete(replace(settings, intensity=level), config) for level in levels]
    # a sheet grows in rows
    if out.suffix.lower() != ".png":
        check_sides(out, runs[0].size, sum(run.size for run in runs))
    model = load_model(files, device)
    # the delay keeps the bar away until a first step is done: what is refused before that stays one line
    with tqdm(desc="animate", unit="step", delay=1e-3, mininterval=0) as bar:
        clips = [model.animate(picture, run, _shown(bar, len(runs))) for run in runs]
    _write(clips, runs, out, fps, _record(photo, runs, files))
    return out


def check_output(path: Path, photo: str | Path) -> None:
    """Refuse an output that could not be written, or would replace the photo, before the long work.

    Raises:
        LivePhotoError: an unknown suffix, no such folder, no permission, or the photo itself.
    """
    check_clip_suffix(path)
    if os.path.exists(path) and os.path.exists(photo) and os.path.samefile(path, photo):
        raise LivePhotoError(f"{path} is the photo itself, and the clip would replace it: give another name")
    folder = behind_link(path).parent
    if not folder.is_dir():
        raise LivePhotoError(f"cannot write {path}: there is no folder {folder}; create the folder first")
    # a file is put in its place whole, for which the folder counts
    if path.is_dir() or not all(os.access(part, os.W_OK) for part in (folder, *([path] if path.exists() else []))):
        raise LivePhotoError(f"cannot write {path}: permission denied or a folder; choose a file you can write to")


def _shown(bar: tqdm, clips: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        bar.total = total * clips
        bar.update()

    return progress


def _write(clips: list[Tensor], runs: list[Settings], out: Path, fps: float, record: dict) -> None:
    if len(clips) == 1:
        write_clip(clips[0], out, fps, record)
    elif out.suffix.lower() == ".png":
        write_picture(contact_sheet(clips, [f"{run.intensity:g}" for run in runs]), out, record)
    else:
        write_clip(torch.cat(clips, dim=-1), out, fps, record)


def _record(photo: str | Path, runs: list[Settings], files: ModelFiles) -> dict:
    """What made the file; names without folders, so that the bytes do not depend on where things lie."""
    levels = [run.intensity for run in runs]
    record = {
        **asdict(runs[0]),
        "intensity": levels[0] if len(levels) == 1 else levels,
        "photo": Path(photo).name,
        "model": Path(files.adapter).name,
        "base": DEMO if files.base is None else Path(files.base).name,
        "livephoto": __version__,
    }
    if files.precision != "fp32":
        record["precision"] = files.precision
    if files.loras:
        record.update(loras=[Path(lora).name for lora in files.loras], lora_strength=files.lora_strength)
    return record
