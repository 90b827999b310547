"""Graphs in ComfyUI's API format."""

from __future__ import annotations

import copy
from typing import Any

FRAMES, STEPS, CFG, SEED, LEVEL, SIZE = 4, 2, 2.0, 5, 6.0, 64
TEXT = "camera pans left"


def clip(photo: str) -> dict[str, Any]:
    """A clip of a photo in ComfyUI's input folder by the demo model: all of our nodes but those for checkpoints and windows."""
    nodes = {
        "demo": ("LivePhotoDemoLoader", {}),
        "photo": ("LoadImage", {"image": photo}),
        "look": ("CLIPVisionEncode", {"clip_vision": ["demo", 3], "image": ["photo", 0], "crop": "center"}),
        "reference": (
            "LivePhotoReferenceEncode",
            {
                "image": ["photo", 0],
                "vae": ["demo", 2],
                "clip_vision_output": ["look", 0],
                "width": SIZE,
                "height": SIZE,
                "fit": "crop",
                "frames": FRAMES,
            },
        ),
        "empty": ("CLIPTextEncode", {"clip": ["demo", 1], "text": ""}),
        "text": ("CLIPTextEncode", {"clip": ["demo", 1], "text": TEXT}),
        "invert": (
            "LivePhotoPriorInversion",
            {"model": ["demo", 0], "empty_text": ["empty", 0], "reference": ["reference", 0], "steps": STEPS},
        ),
        "motion": ("LivePhotoIntensity", {"level": LEVEL}),
        "apply": (
            "LivePhotoApply",
            {
                "model": ["demo", 0],
                "livephoto_model": ["demo", 4],
                "reference": ["invert", 0],
                "motion": ["motion", 0],
                "image_strength": 1.0,
                "motion_strength": 1.0,
            },
        ),
        "positive": (
            "LivePhotoTextReweight",
            {
                "conditioning": ["text", 0],
                "livephoto_model": ["demo", 4],
                "frames": FRAMES,
                "strength": 1.0,
                "clip": ["demo", 1],
                "text": TEXT,
            },
        ),
        "negative": (
            "LivePhotoTextReweight",
            {"conditioning": ["empty", 0], "livephoto_model": ["demo", 4], "frames": FRAMES, "strength": 1.0},
        ),
        "sample": (
            "LivePhotoSampler",
            {
                "model": ["apply", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "reference": ["invert", 0],
                "frames": FRAMES,
                "seed": SEED,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": "dpmpp_2m",
                "scheduler": "sgm_uniform",
                "prior_start": 0.033,
                "prior_end": 0.016,
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["demo", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "clip"}),
        "measure": (
            "LivePhotoMeasureMotion",
            {"images": ["decode", 0], "livephoto_model": ["demo", 4], "motion": ["motion", 0]},
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def changed(graph: dict[str, Any], /, **nodes: Any) -> dict[str, Any]:
    """A graph with some inputs set ({"steps": 3}; None takes one out), or with nodes put in (("KSampler", {...}))."""
    graph = copy.deepcopy(graph)
    for name, change in nodes.items():
        if isinstance(change, tuple):
            kind, inputs = change
            graph[name] = {"class_type": kind, "inputs": dict(inputs)}
        else:
            graph[name]["inputs"] |= change
            graph[name]["inputs"] = {key: value for key, value in graph[name]["inputs"].items() if value is not None}
    return graph
