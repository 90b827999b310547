"""Seconds of the demo's clips, long ones in context windows. What to measure comes in LIVEPHOTO_SPEED, as for speed.py."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from kit import apply, case, defaults, demo, node, prompts, reference, text


@case
def windows() -> dict[str, Any]:
    """Seconds of whole clips of the demo, inversion included: 16 frames, and 64 in windows as the node sets them."""
    steps = json.loads(os.environ["LIVEPHOTO_SPEED"])["window_steps"]
    long = node("LivePhotoContextWindows", model=apply(), **defaults("LivePhotoContextWindows"))[0]
    positive, negative = prompts()
    found: dict[str, list[float]] = {"16": [], "64": []}
    for turn in range(3):
        for frames, model in ((16, apply()), (64, long)):
            start = time.perf_counter()
            photo = node("LivePhotoPriorInversion", model=demo().model, empty_text=text(""), reference=reference(), steps=steps)[0]
            node(
                "LivePhotoSampler",
                model=model,
                positive=positive,
                negative=negative,
                reference=photo,
                frames=frames,
                seed=turn,
                steps=steps,
                cfg=2.0,
                sampler_name="euler",
                scheduler="normal",
                prior_start=0.033,
                prior_end=0.016,
            )
            found[str(frames)].append(time.perf_counter() - start)
    return {frames: values[1:] for frames, values in found.items()}
