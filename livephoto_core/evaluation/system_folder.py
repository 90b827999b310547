"""Clips made elsewhere as a system for MotionBench, and the list of what to make."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import LivePhotoError, first_line
from ..files import atomic_folder
from ..media import read_clip
from ..media_write import write_picture
from .benching import asked_level
from .suite import FRAMES, VERSION, Suite, first_frame
from .systems import Request, System

SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".webp", ".gif")
ABOUT = "suite.json"
COLUMNS = ("name", "photo", "text", "level", "seed", "frames")


def export_suite(suite: Suite, out: str | Path, system: System) -> int:
    """Write what a suite asks for into a folder, for systems that cannot be called from here; returns the number of clips.

    photos/SCENE.png, as large as the system's; cases.csv with COLUMNS, a row a clip; suite.json with the suite's version,
    fingerprint and the photos' size.

    Args:
        suite: its cases.
        out: the folder, new or empty.
        system: whose size the photos have and whose levels the cases ask for; one with the suite's own, as `folder_system`.

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
            write_picture(first_frame(clip, system.size), folder / "photos" / f"{scene}.png")
        with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for case in cases:
                writer.writerow((case.name, f"photos/{case.scene}.png", case.text, asked_level(case, system), case.seed, FRAMES))
        about = {"version": VERSION, "plan": suite.plan, "fingerprint": suite.fingerprint, "size": system.size}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return len(cases)


def folder_system(folder: str | Path, suite: Suite) -> System:
    """The clips of a folder: each case's lies there as NAME.mp4 (or another of SUFFIXES) or as a folder NAME of pictures.

    ABOUT lies there too, as `export_suite` wrote it: cases of other suites and photos have the same names.

    Raises:
        LivePhotoError: no such folder, clips made for another suite or other photos, or clips that are missing, before any is
            measured.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LivePhotoError(f"there is no folder {folder}: give the folder of the clips")
    size = _size_for(folder / ABOUT, suite)
    names = [case.name for case in (*suite.text, *suite.level)]
    missing = [name for name in names if _find(folder, name) is None]
    if missing:
        raise LivePhotoError(
            f"{len(missing)} of {len(names)} clips are not in {folder}, the first is {missing[0]}: "
            f"name each as cases.csv does, with one of {' '.join(SUFFIXES)}"
        )

    def animate(requests: Sequence[Request]) -> list[torch.Tensor]:
        return [read_clip(_find(folder, request.name), max_frames=FRAMES).frames for request in requests]

    return System(f"clips in {folder.name}", animate, size)


def _size_for(about: Path, suite: Suite) -> int:
    """The side of the photos that clips were made from, once it is sure that they are of this suite."""
    try:
        told = json.loads(about.read_text(encoding="utf-8"))
        fingerprint, plan, size = told["fingerprint"], told["plan"], int(told["size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LivePhotoError(
            f"cannot read {about} ({first_line(error)}): copy the {ABOUT} that livephoto bench export wrote beside the clips"
        ) from error
    if fingerprint != suite.fingerprint:
        raise LivePhotoError(
            f"the clips in {about.parent} were made for the suite {plan} {fingerprint}, this is {suite.plan} {suite.fingerprint}: "
            "give the same --suite and --photos as in the export"
        )
    return size


def _find(folder: Path, name: str) -> Path | None:
    places = (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES))
    return next((place for place in places if place.exists()), None)
