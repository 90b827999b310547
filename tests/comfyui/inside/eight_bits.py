"""The demo where ComfyUI is told to keep UNets in 8 bits."""

from __future__ import annotations

from typing import Any

from kit import apply, case, demo, prompts, sample


@case
def demo_clip() -> dict[str, Any]:
    weights = demo().model.model.diffusion_model, demo().livephoto.adapter
    return {"latents": sample(apply(), *prompts()), "dtypes": [str(next(part.parameters()).dtype) for part in weights]}
