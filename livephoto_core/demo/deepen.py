"""Teaches a demo model's patch encoder to see better, in more layers: `python -m livephoto_core.demo.deepen OUT`.

The encoder learns on as `patches` teaches, and to tell what it told before; the adapter's first layer for its tokens is changed
to go with them. OUT is a whole demo model, to be trained further on clips that are cached with OUT's encoders.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import Dinov2Model

from ..base import load_image_encoder
from ..checkpoint import CONFIG_KEY, read_config, save_tensors
from ..commands.model_files import DEMO_FOLDER
from ..config import to_json
from ..errors import LivePhotoError
from ..files import atomic_folder
from .patches import BATCH, LAYERS, Lesson, new_patch_encoder, patch_tokens, sight_clips, teach
from .portable import make_portable
from .stills import Sights

# what an added layer is worth at the start
NEW_SCALE = 0.03


def deepened(encoder: Dinov2Model, layers: int) -> Dinov2Model:
    """The encoder with new layers behind its own, `layers` in all, its tokens about what they were.

    Raises:
        LivePhotoError: it has more layers already.
    """
    has = encoder.config.num_hidden_layers
    if has > layers:
        raise LivePhotoError(f"the patch encoder has {has} layers already: ask for as many or more with --layers")
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


class FurtherLesson(Lesson):
    """A lesson in which `back` of the tokens shall be those of the encoder as it was."""

    def __init__(self, encoder: Dinov2Model, old: Dinov2Model):
        super().__init__(encoder)
        self.old, self.back = old.requires_grad_(False), identity(encoder.config.hidden_size)

    def seen_loss(self, pictures: torch.Tensor, cover: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """As Lesson, and how far the tokens are from telling what they told."""
        tokens = patch_tokens(self.encoder, pictures)
        return self.told_loss(tokens, pictures, cover, place) + functional.mse_loss(
            self.back(tokens), patch_tokens(self.old, pictures)
        )


def reading_through(tensors: dict[str, torch.Tensor], back: nn.Linear) -> dict[str, torch.Tensor]:
    """An adapter's tensors, its projection of the tokens put behind `back`."""
    weight, bias = tensors["content_proj.weight"].float(), tensors["content_proj.bias"].float()
    changed = {"content_proj.weight": weight @ back.weight, "content_proj.bias": weight @ back.bias + bias}
    return {**tensors, **{name: value.to(tensors[name].dtype) for name, value in changed.items()}}


def deepen(model: Path, out: Path, layers: int, steps: int, batch: int) -> None:
    """Write the demo model in `model` with its encoder taught further to `out`.

    Raises:
        LivePhotoError: no photo package, a folder that holds no demo model, or fewer layers than its encoder has.
    """
    accelerator = Accelerator(cpu=True)
    old = load_image_encoder(model / "image_encoder")
    torch.manual_seed(0)
    lesson = FurtherLesson(deepened(old, layers), old)
    teach(lesson, Sights(sight_clips(accelerator.process_index)), steps, batch, accelerator)
    if not accelerator.is_main_process:
        return
    lesson.eval().requires_grad_(False)
    with atomic_folder(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "image_encoder")
        lesson.encoder.half().save_pretrained(folder / "image_encoder")
        make_portable(folder)
        adapter = folder / "adapter.safetensors"
        config = {CONFIG_KEY: to_json(read_config(adapter))}
        save_tensors(reading_through(load_file(adapter), lesson.back), adapter, config)


def main() -> None:
    """The command line; under torchrun, several processes teach one encoder."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.deepen", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the new model")
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER, help="a demo model's folder (default: the one that ships)")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    try:
        deepen(options.model, options.out, options.layers, options.steps, options.batch)
    except LivePhotoError as error:
        raise SystemExit(f"deepen: {error}") from error


if __name__ == "__main__":
    main()
