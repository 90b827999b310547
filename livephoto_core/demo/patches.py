"""The demo's patch encoder: a small DINOv2-layout transformer, one token for each latent pixel.

    python -m livephoto_core.demo.patches FOLDER --steps 6000

DINOv2's tokens tell what belongs together, learnt from a hundred million pictures. This one learns it from first frames
of scenes like the clips': the pixels of patches, hidden ones too, and where the thing is that may move. So a place that the thing
will reach can tell how far off its middle is, and whether what it fetches there is the thing or what lies behind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from ..encoding import normalised
from ..errors import LivePhotoError
from ..files import atomic_folder
from ..model.content import grid_positions
from ..training.muon import MuonAdamW, is_matrix
from .clips import ClipSet
from .photos import package_photos
from .source import MIRROR_SHARE, ODD_SHARE
from .sprites import SHAPES
from .stills import Sights
from .vae import learning_rate

LAYERS = 8
STEPS, BATCH = 6000, 48
RATE = 1.5e-3
# a share of the pictures is seen with a share of the patches hidden
MASKED_PICTURES, HIDDEN_PATCHES = 0.2, 0.4
# beside the error of the pixels that are seen, which is of numbers around one
SIGHT_WEIGHT, HIDDEN_WEIGHT = 3.0, 0.5
# scenes other than the caches', which are of seeds 0 and 1; those without a thing teach only pixels
SEED, SIGHT_THING_SHARE = 77, 0.9
# a thing's usual half size in frame units: sizes are told as log(half / this)
USUAL_HALF = 0.4


def new_patch_encoder(size: int = 64, layers: int = LAYERS) -> Dinov2Model:
    """The untrained encoder: [N, 3, S, S] normalised pictures -> [N, 1 + (S / 4)^2, 96] tokens."""
    return Dinov2Model(
        Dinov2Config(
            image_size=size,
            patch_size=4,
            hidden_size=96,
            num_hidden_layers=layers,
            num_attention_heads=3,
            mlp_ratio=2,
            layerscale_value=1.0,
        )
    )


def sight_clips(process: int = 0) -> ClipSet:
    """Scenes of the training photographs to learn to see from, other ones in each process."""
    train, _ = package_photos()
    varied = {"thing_share": SIGHT_THING_SHARE, "odd_share": ODD_SHARE, "mirror_share": MIRROR_SHARE}
    return ClipSet(train, SHAPES, seed=SEED + process, **varied)


class Readout(nn.Module):
    """What patch tokens [N, T, D] are taught to tell linearly: their pixels, the thing's cover, the way to its middle, its size."""

    def __init__(self, config: Dinov2Config):
        super().__init__()
        self.patch = config.patch_size
        self.pixels = nn.Linear(config.hidden_size, 3 * self.patch**2)
        self.cover = nn.Linear(config.hidden_size, 1)
        self.way = nn.Linear(config.hidden_size, 3)

    def pixel_loss(self, tokens: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Mean square error of the pixels of normalised pictures [N, 3, S, S]."""
        target = rearrange(pictures, "n c (r p) (k q) -> n (r k) (c p q)", p=self.patch, q=self.patch)
        return functional.mse_loss(self.pixels(tokens), target)

    def sight_loss(self, tokens: torch.Tensor, cover: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """How wrong tokens are about the thing, mean over pictures with one; cover [N, S, S] and place [N, 4] of `Sights`."""
        there = place[:, 3]
        wanted = functional.avg_pool2d(cover[:, None], self.patch)
        unsure = functional.binary_cross_entropy_with_logits(self.cover(tokens)[..., 0], wanted.flatten(1), reduction="none")
        here = 2 * grid_positions(*wanted.shape[2:], device=tokens.device).flip(-1) - 1
        way = place[:, None, :2] - here
        size = (place[:, None, 2:3] / USUAL_HALF).log().expand(-1, way.shape[1], -1)
        astray = (self.way(tokens) - torch.cat([way, size], -1)).abs().mean(-1)
        return ((unsure + astray).mean(1) * there).sum() / there.sum().clamp(min=1)


def patch_tokens(encoder: Dinov2Model, pictures: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """The patch tokens [N, T, D] of normalised pictures [N, 3, S, S], patches `hidden` [N, T] unseen."""
    return encoder(pictures, bool_masked_pos=hidden).last_hidden_state[:, 1:]


class Lesson(nn.Module):
    """An encoder and its readout; called with a batch of `Sights` it gives the loss.

    The first pictures are seen with the patches `hidden` [M, T], for their pixels alone.
    """

    def __init__(self, encoder: Dinov2Model):
        super().__init__()
        self.encoder, self.readout = encoder, Readout(encoder.config)

    def forward(self, frames: torch.Tensor, cover: torch.Tensor, place: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        masked = len(hidden)
        pictures = normalised(frames)
        loss = self.seen_loss(pictures[masked:], cover[masked:], place[masked:])
        if masked:
            tokens = patch_tokens(self.encoder, pictures[:masked], hidden)
            loss = loss + HIDDEN_WEIGHT * self.readout.pixel_loss(tokens, pictures[:masked])
        return loss

    def seen_loss(self, pictures: torch.Tensor, cover: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The loss of whole pictures, normalised [N, 3, S, S]."""
        return self.told_loss(patch_tokens(self.encoder, pictures), pictures, cover, place)

    def told_loss(self, tokens: torch.Tensor, pictures: torch.Tensor, cover: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """How wrong tokens are about pixels and thing."""
        return self.readout.pixel_loss(tokens, pictures) + SIGHT_WEIGHT * self.readout.sight_loss(tokens, cover, place)


def optimizer_of(lesson: Lesson) -> MuonAdamW:
    """Muon for the matrices of the encoder's layers, AdamW for what reads or writes pictures."""
    matrices = {name for name, p in lesson.encoder.named_parameters() if not name.startswith("embeddings.") and is_matrix(p)}
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in lesson.named_parameters():
        if parameter.requires_grad:
            parts[name.removeprefix("encoder.") in matrices].append(parameter)
    groups = [{"params": part, "orthogonal": orthogonal} for orthogonal, part in parts.items()]
    return MuonAdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def teach(lesson: Lesson, sights: Sights, steps: int, batch: int, accelerator: Accelerator) -> None:
    """Train on `batch` pictures a step, in all processes together; each has sights of its own."""
    optimizer = optimizer_of(lesson)
    taught, optimizer = accelerator.prepare(lesson, optimizer)
    size = max(1, batch // accelerator.num_processes)
    masked, patches = round(MASKED_PICTURES * size), (sights.clips.size // lesson.encoder.config.patch_size) ** 2
    loader = iter(DataLoader(sights, batch_size=size, num_workers=1))
    generator = torch.Generator().manual_seed(accelerator.process_index)
    bar = tqdm(range(steps), desc="patch encoder", disable=not accelerator.is_main_process)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = RATE * learning_rate(step, steps, max(1, steps // 20))
        hidden = torch.rand(masked, patches, generator=generator) < HIDDEN_PATCHES
        loss = taught(*next(loader), hidden)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(lesson.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def train_patch_encoder(sights: Sights, steps: int, batch: int, accelerator: Accelerator) -> tuple[Dinov2Model, Readout]:
    """A new encoder, taught to see, and what reads out of its tokens what it sees; batches of three or more have hidden patches."""
    torch.manual_seed(0)
    lesson = Lesson(new_patch_encoder(sights.clips.size, LAYERS))
    teach(lesson, sights, steps, batch, accelerator)
    lesson.eval().requires_grad_(False)
    return lesson.encoder, lesson.readout


def main() -> None:
    """The command line; under torchrun, several processes teach one encoder."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.demo.patches", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the encoder")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    try:
        sights = Sights(sight_clips(accelerator.process_index))
    except LivePhotoError as error:
        raise SystemExit(f"patches: {error}") from error
    encoder, _ = train_patch_encoder(sights, options.steps, options.batch, accelerator)
    if accelerator.is_main_process:
        with atomic_folder(options.out) as folder:
            encoder.save_pretrained(folder)


if __name__ == "__main__":
    main()
