"""SD1.5 and LivePhoto at full size, loaded by ComfyUI's and our loaders: one UNet call, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import torch
from kit import LEVEL, case, part, recorded, recording, sample

import nodes

TEXT = "a cat turns its head"
SIDE = 37


@case
def checkpoint() -> dict[str, Any]:
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint("sd15.safetensors")[:3]
    livephoto = part("nodes.loaders").load(Path(folder_paths.get_full_path_or_raise("livephoto", "full.safetensors")))
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (TEXT, ""))
    generator, types = torch.Generator().manual_seed(7), part("nodes.types")
    photo = torch.rand(1, 128, 128, 3, generator=generator)
    tokens = torch.randn(1, SIDE * SIDE, livephoto.config.content.token_width, generator=generator)
    reference = types.Reference(vae.encode(photo), tokens, (SIDE, SIDE))
    patched = part("nodes.comfy_host").apply(model, livephoto, reference, types.Motion(LEVEL), 1.0, 1.0)
    patched, calls = recorded(patched)
    sample(patched, positive, negative, frames=2, steps=1)
    found = {"kind": type(model.model).__name__, "prediction": model.model.model_type.name, "dtype": str(model.model_dtype())}
    return {**recording(calls, reference, model), **found, "photo": photo.movedim(-1, 1), "text": positive[0][0], "prompt": TEXT}
