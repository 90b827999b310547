"""A clip of the shipped demo, from a loaded model to its frames, in each precision."""

from __future__ import annotations

from typing import Any

from livephoto_core.commands.model_files import DEMO_FOLDER, ModelFiles, load_model
from livephoto_core.media import read_image
from livephoto_core.pipeline import Settings

from .timing import by_turns, spread

PHOTO = DEMO_FOLDER.parent / "photos" / "chelsea.jpg"
PRECISIONS = ("fp32", "bf16")
CFG = 4.0


def measure_demo(steps: int, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of a clip in each of PRECISIONS, prior inversion included, and how near the others' frames are to the first's.

    Nearness is PSNR in dB.
    """
    photo, settings = read_image(PHOTO), Settings("camera pans left", steps=steps, cfg=CFG)
    models = {name: load_model(ModelFiles(precision=name), device) for name in PRECISIONS}
    clips = {name: (lambda model=model: model.animate(photo, settings)) for name, model in models.items()}
    seconds = by_turns(clips, rounds, device)
    first, *others = (clip() for clip in clips.values())
    psnr = [float(-10 * (clip - first).square().mean().log10()) for clip in others]
    return {
        "steps": steps,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "psnr": dict(zip(PRECISIONS[1:], psnr, strict=True)),
    }
