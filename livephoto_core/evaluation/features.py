"""DINO and CLIP scores of frame consistency, as in the paper's Tables 1 and 2, from weights in the user's own folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from ..encoding import PHOTO_MEAN, PHOTO_STD
from ..errors import LivePhotoError, first_line

# mean and standard deviation of the pictures that each was trained on
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 224
# frames [F, 3, H, W], 0..1 -> features [F, D]
Features = Callable[[torch.Tensor], torch.Tensor]


def consistency(features: torch.Tensor) -> float:
    """Mean cosine of adjacent frames' features [F, D], times 100 as the paper prints it."""
    return 100 * float(F.cosine_similarity(features[1:], features[:-1]).mean())


def dino_features(folder: str | Path, device: str) -> Features:
    """The class token of a DINOv2 or DINO in a folder of transformers' layout.

    Raises:
        LivePhotoError: no such model in the folder.
    """
    from transformers import AutoModel

    model = _load(AutoModel, folder, device)
    return lambda frames: _run(model, frames, device, PHOTO_MEAN, PHOTO_STD).last_hidden_state[:, 0]


def clip_features(folder: str | Path, device: str) -> Features:
    """The image embedding of a CLIP in a folder of transformers' layout.

    Raises:
        LivePhotoError: no such model in the folder.
    """
    from transformers import CLIPVisionModelWithProjection

    model = _load(CLIPVisionModelWithProjection, folder, device)
    return lambda frames: _run(model, frames, device, *OPENAI).image_embeds


def extractors(dino: str | Path | None, clip: str | Path | None, device: str) -> dict[str, Features]:
    """{"DINO": ..., "CLIP": ...} of the folders that were given.

    Raises:
        LivePhotoError: as `dino_features` and `clip_features`.
    """
    found = {}
    if dino is not None:
        found["DINO"] = dino_features(dino, device)
    if clip is not None:
        found["CLIP"] = clip_features(clip, device)
    return found


def scorers(features: dict[str, Features]) -> dict[str, Callable[[torch.Tensor], float]]:
    """The scores of adjacent frames [F, 3, H, W] by such extractors, named as the report has them."""
    return {f"{name} score": lambda frames, f=f: consistency(f(frames)) for name, f in features.items()}


def _load(kind, folder: str | Path, device: str):
    try:
        options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        model, found = kind.from_pretrained(folder, **options)
        model = model.to(device).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LivePhotoError(f"cannot load the model in {folder} ({first_line(error)}): give a folder with safetensors") from error
    if not all(hasattr(model.config, name) for name in ("patch_size", "image_size")):
        raise LivePhotoError(f"the model in {folder} is a {type(model).__name__}, no encoder of pictures: give DINO's or CLIP's")
    # drawn at random where the file is another model's; a pooler is not looked at
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise LivePhotoError(f"the model in {folder} lacks {len(missing)} weights such as {missing[0]}: give DINO's or CLIP's")
    return model


@torch.no_grad()
def _run(model, frames: torch.Tensor, device: str, mean: tuple[float, ...], deviation: tuple[float, ...]):
    patch = model.config.patch_size
    side = min(SIDE, model.config.image_size) // patch * patch
    pictures = F.interpolate(frames, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))
    return model(pixel_values=((pictures - mean) / deviation).to(device))
