"""The demo's clips, encoded for training: `python -m livephoto_core.demo.clip_cache OUT --count 6016`.

With the shipped demo's encoders, OUT is what trains it further: `livephoto train` with data.kind "cache" and the demo's weights
as base. What a stopped run left in OUT is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import torch

from ..commands.model_files import DEMO_FOLDER
from ..errors import LivePhotoError
from ..training.cache import (
    Manifest,
    check_made_from,
    fill_shards,
    finish_cache,
    made_from_of,
    make_folder,
    read_manifest,
    write_manifest,
)
from ..training.caching import weights_digest
from .clips import ClipSet
from .encode import encode_clip, load_encoders
from .photos import package_photos
from .phrasings import phrasings
from .source import ProceduralSource
from .sprites import HELD_OUT_SHAPES, SHAPES
from .telling import spins_told_by

# the first clips of a cache, of scenes that are not trained on: validation's
HELD_OUT = 24


def held_out_of(count: int) -> int:
    """How many of so many clips are of scenes that are not trained on: no more than a training holds out."""
    return min(HELD_OUT, count // 10)


def training_clips() -> ClipSet:
    """Photographs and shapes that the demo learns from."""
    train, _ = package_photos()
    return ClipSet(train, SHAPES)


def held_out_clips() -> ClipSet:
    """Clips of whole photographs that the demo never sees."""
    _, test = package_photos()
    return ClipSet(test, HELD_OUT_SHAPES, seed=1, thing_share=0.0)


def origin_of(encoders: Path, count: int) -> dict[str, str | int]:
    """What a cache is made from, as `livephoto train` holds it against its base."""
    vae, patches = load_encoders(encoders)
    return {
        "data.kind": "demo",
        "data.held_out": held_out_of(count),
        "data.intensity_from": "reconstruction",
        "data.intensity_measure": "ssim",
        "the VAE": weights_digest(vae),
        "the image encoder": weights_digest(patches),
        "the captions": hashlib.sha256(json.dumps(phrasings()).encode()).hexdigest()[:16],
        "the spins": hashlib.sha256(json.dumps(spins_told_by()).encode()).hexdigest()[:16],
    }


def make_cache(encoders: Path, out: Path, count: int, processes: int) -> None:
    """Fill a cache in several processes of one thread.

    Raises:
        LivePhotoError: no photo package is installed, too few clips or processes, a folder that is no demo model's, or one for the
            cache that holds other clips or cannot be written.
        SystemExit: a process failed; what they wrote is kept.
    """
    if count <= HELD_OUT or processes < 1:
        raise LivePhotoError(
            f"{count} clips by {processes} processes: use more clips than the {HELD_OUT} of validation, and a process or more"
        )
    made_from = origin_of(encoders, count)
    package_photos()
    manifest = read_manifest(out)
    check_made_from(out, made_from_of(out), made_from, "name another folder, or delete this one")
    if any(out.glob("clips-*.safetensors")) and (manifest is None or manifest.made_from != made_from):
        raise LivePhotoError(f"{out} holds cached clips of another kind: name another folder, or delete this one")
    make_folder(out)
    write_manifest(out, Manifest(made_from=made_from))
    command = [sys.executable, "-m", __spec__.name, str(out), "--encoders", str(encoders), "--count", str(count)]
    running = [subprocess.Popen([*command, "--share", f"{process}/{processes}"]) for process in range(processes)]
    if any([process.wait() for process in running]):
        raise SystemExit("caching the clips failed: see above")
    finish_cache(out, count, made_from)


def make_share(encoders: Path, out: Path, count: int, process: int, processes: int) -> None:
    """One process's share of a cache."""
    vae, patches = load_encoders(encoders)
    source = ProceduralSource(package_photos(), count, held_out_of(count))
    torch.set_num_threads(1)
    fill_shards(out, count, lambda index: encode_clip(source.sample(index), vae, patches), process, processes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.clip_cache", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the cache")
    parser.add_argument("--count", type=int, default=6016, help=f"clips, the first {HELD_OUT} for validation (default 6016)")
    parser.add_argument("--encoders", type=Path, default=DEMO_FOLDER, help="a demo model's folder (default: the one that ships)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--share", metavar="K/N", help="only share K of N")
    options = parser.parse_args()
    try:
        if options.share is None:
            make_cache(options.encoders, options.out, options.count, options.processes)
        else:
            make_share(options.encoders, options.out, options.count, *map(int, options.share.split("/")))
    except LivePhotoError as error:
        raise SystemExit(f"clip_cache: {error}") from error


if __name__ == "__main__":
    main()
