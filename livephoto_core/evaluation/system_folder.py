"""Clips made elsewhere as a system for MotionBench, and the list of what to make."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import LivePhotoError
from ..files import atomic_folder
from ..media import read_clip
from ..media_write import write_picture
from .benching import asked_level
from .suite import FRAMES, VERSION, Suite, first_frame
from .systems import Request, System

SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".webp", ".gif")
COLUMNS = ("name", "photo", "text", "level", "seed", "frames")


def export_suite(suite: Suite, out: str | Path, size: int, system: System) -> int:
    """Write what a suite asks for into a folder, for systems that cannot be called from here; returns the number of clips.

    photos/SCENE.png, `size` pixels a side; cases.csv with COLUMNS, a row a clip; suite.json with the suite's version and
    fingerprint.

    Args:
        suite: its cases.
        out: the folder, new or empty.
        size: side of the photos.
        system: whose levels the cases ask for; one with the suite's own, as `folder_system`.

    Raises:
        LivePhotoError: a folder that has something in it or cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LivePhotoError(f"{out} is there already and not empty: give a new folder")
    cases = (*suite.text, *suite.level)
    with atomic_folder(out) as folder:
        (folder / "photos").mkdir()
        for scene, clip in suite.scenes.items():
            write_picture(first_frame(clip, size), folder / "photos" / f"{scene}.png")
        with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for case in cases:
                writer.writerow((case.name, f"photos/{case.scene}.png", case.text, asked_level(case, system), case.seed, FRAMES))
        about = {"version": VERSION, "plan": suite.plan, "fingerprint": suite.fingerprint}
        (folder / "suite.json").write_text(json.dumps(about), encoding="utf-8")
    return len(cases)


def folder_system(folder: str | Path, suite: Suite) -> System:
    """The clips of a folder: each case's lies there as NAME.mp4 (or another of SUFFIXES) or as a folder NAME of pictures.

    Raises:
        LivePhotoError: no such folder, or clips that are missing, before any is measured.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LivePhotoError(f"there is no folder {folder}: give the folder of the clips")
    names = [case.name for case in (*suite.text, *suite.level)]
    missing = [name for name in names if _find(folder, name) is None]
    if missing:
        raise LivePhotoError(
            f"{len(missing)} of {len(names)} clips are not in {folder}, the first is {missing[0]}: "
            f"name each as cases.csv does, with one of {' '.join(SUFFIXES)}"
        )

    def animate(requests: Sequence[Request]) -> list[torch.Tensor]:
        return [read_clip(_find(folder, request.name), max_frames=FRAMES).frames for request in requests]

    return System(f"clips in {folder.name}", animate)


def _find(folder: Path, name: str) -> Path | None:
    places = (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES))
    return next((place for place in places if place.exists()), None)
