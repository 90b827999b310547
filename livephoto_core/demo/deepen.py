"""Teaches the shipped demo's patch encoder to see more: `python -m livephoto_core.demo.deepen OUT`.

Layers are added to the encoder, which learns where things are and still tells what it told; the adapter's first layer for its
tokens is changed to go with them. OUT is a whole demo model, for training further on clips that are cached with OUT's encoders.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import Dinov2Model

from ..base import load_image_encoder
from ..checkpoint import CONFIG_KEY, read_config, save_tensors
from ..commands.model_files import DEMO_FOLDER
from ..config import to_json
from ..encoding import normalised
from ..errors import LivePhotoError
from ..files import atomic_folder
from .patches import LAYERS, Readout, descend, new_patch_encoder, patch_tokens, sight_and_pixels, sight_clips
from .portable import make_portable
from .stills import Sights

RATE = 1.5e-3
# what an added layer is worth at the start
NEW_SCALE = 0.1


def deepened(encoder: Dinov2Model, layers: int) -> Dinov2Model:
    """The encoder with new layers behind its own, `layers` in all, its tokens about what they were.

    Raises:
        LivePhotoError: it has as many layers already.
    """
    has = encoder.config.num_hidden_layers
    if has >= layers:
        raise LivePhotoError(f"the patch encoder has {has} layers already: ask for more with --layers")
    deep = new_patch_encoder(encoder.config.image_size, layers)
    for name, parameter in deep.named_parameters():
        if "layer_scale" in name:
            parameter.data.fill_(NEW_SCALE)
    deep.load_state_dict(encoder.state_dict(), strict=False)
    return deep


def identity(width: int) -> nn.Linear:
    """A layer that changes nothing yet."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def deepen(encoder: Dinov2Model, layers: int, steps: int, batch: int) -> tuple[Dinov2Model, nn.Linear]:
    """(the deeper encoder, the layer that turns its tokens into the old ones)."""
    torch.manual_seed(0)
    deep, back = deepened(encoder, layers), identity(encoder.config.hidden_size)
    readout = Readout(deep.config)
    generator = torch.Generator().manual_seed(0)

    def loss_of(frames: torch.Tensor, cover: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        loss, seen = sight_and_pixels(deep, readout, frames, cover, place, generator)
        with torch.no_grad():
            old = patch_tokens(encoder, normalised(frames[-len(seen) :]))
        return loss + functional.mse_loss(back(seen), old)

    descend((deep, readout, back), loss_of, Sights(sight_clips()), steps, batch, RATE)
    return deep.eval().requires_grad_(False), back.requires_grad_(False)


def reading_through(tensors: dict[str, torch.Tensor], back: nn.Linear) -> dict[str, torch.Tensor]:
    """An adapter's tensors, its projection of the tokens put behind `back`."""
    weight, bias = tensors["content_proj.weight"].float(), tensors["content_proj.bias"].float()
    changed = {"content_proj.weight": weight @ back.weight, "content_proj.bias": weight @ back.bias + bias}
    return {**tensors, **{name: value.to(tensors[name].dtype) for name, value in changed.items()}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.deepen", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the new model")
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER, help="a demo model's folder (default: the one that ships)")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=40)
    options = parser.parse_args()
    try:
        old = load_image_encoder(options.model / "image_encoder")
        encoder, back = deepen(old, options.layers, options.steps, options.batch)
        with atomic_folder(options.out) as folder:
            shutil.copytree(options.model, folder, dirs_exist_ok=True)
            shutil.rmtree(folder / "image_encoder")
            encoder.half().save_pretrained(folder / "image_encoder")
            make_portable(folder)
            adapter = folder / "adapter.safetensors"
            config = {CONFIG_KEY: to_json(read_config(adapter))}
            save_tensors(reading_through(load_file(adapter), back), adapter, config)
    except LivePhotoError as error:
        raise SystemExit(f"deepen: {error}") from error


if __name__ == "__main__":
    main()
