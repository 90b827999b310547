"""Gives a demo model's looks at the photo a middle of their own: `python -m livephoto_core.demo.centre OUT`.

OUT is a whole demo model that makes the clips it made before; trained further, it can learn round what a thing grows and spins.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from ..checkpoint import load_adapter, save_adapter
from ..commands.model_files import DEMO_FOLDER
from ..errors import LivePhotoError
from ..files import atomic_folder
from ..model.adapter import LivePhotoAdapter


def with_centred_looks(adapter: LivePhotoAdapter) -> LivePhotoAdapter:
    """The adapter with centred offsets in its content attention; the new middles are zero, which is the picture's.

    Raises:
        LivePhotoError: its content attention has centred offsets already, or knows no places.
    """
    config = adapter.config
    if not config.parts.content or config.content.positions != "rope":
        raise LivePhotoError("the adapter does not look at places of the photo: give one with content attention and rope positions")
    if config.content.centred:
        raise LivePhotoError("the adapter's looks have a middle of their own already: train it further as it is")
    changed = LivePhotoAdapter(replace(config, content=replace(config.content, centred=True)))
    changed.load_state_dict(adapter.state_dict(), strict=False)
    return changed


def centre(model: Path, out: Path) -> None:
    """Write the demo model in `model` with centred looks to `out`.

    Raises:
        LivePhotoError: no adapter there or one that cannot be changed so, or `out` cannot be written.
    """
    adapter = with_centred_looks(load_adapter(model / "adapter.safetensors"))
    with atomic_folder(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        save_adapter(adapter, folder / "adapter.safetensors")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.centre", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the new model")
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER, help="a demo model's folder (default: the one that ships)")
    options = parser.parse_args()
    try:
        centre(options.model, options.out)
    except LivePhotoError as error:
        raise SystemExit(f"centre: {error}") from error


if __name__ == "__main__":
    main()
