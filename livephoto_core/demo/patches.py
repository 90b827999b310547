"""The demo's patch encoder: a small DINOv2-layout transformer, one token for each latent pixel.

DINOv2's tokens tell what belongs together, learnt from a hundred million pictures. This one learns it from the clips' first
frames: the pixels of patches, hidden ones too, and where the thing is that may move. A place that the thing will reach can then
tell how far it is from its middle, and whether what it fetches is the thing or what lies behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from ..encoding import normalised
from ..model.content import grid_positions
from .clips import ClipSet
from .photos import package_photos
from .source import MIRROR_SHARE, ODD_SHARE
from .sprites import SHAPES
from .stills import Sights

LAYERS = 6
# one picture in five is seen with four in ten of its patches hidden
MASKED_PICTURES, HIDDEN_PATCHES = 5, 0.4
# against the pixels' error, which is of numbers around one
SIGHT_WEIGHT = 2.0
# scenes other than the caches', which are of seed 0; those without a thing teach only pixels
SEED, THING_SHARE = 77, 0.8
# a thing's usual half size in frame units: sizes are told as logarithms of how many times that they are
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


def sight_clips() -> ClipSet:
    """Scenes of the training photographs to learn to see from."""
    train, _ = package_photos()
    return ClipSet(train, SHAPES, seed=SEED, thing_share=THING_SHARE, odd_share=ODD_SHARE, mirror_share=MIRROR_SHARE)


class Readout(nn.Module):
    """What patch tokens [N, T, D] are taught to tell linearly: their pixels, the thing's cover, the way to its middle, its size."""

    def __init__(self, config: Dinov2Config):
        super().__init__()
        self.patch = config.patch_size
        self.pixels = nn.Linear(config.hidden_size, 3 * self.patch**2)
        self.cover = nn.Linear(config.hidden_size, 1)
        self.place = nn.Linear(config.hidden_size, 3)

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
        astray = (self.place(tokens) - torch.cat([way, size], -1)).abs().mean(-1)
        return ((unsure + astray).mean(1) * there).sum() / there.sum().clamp(min=1)


def patch_tokens(encoder: Dinov2Model, pictures: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """The patch tokens [N, T, D] of normalised pictures [N, 3, S, S], patches `hidden` [N, T] unseen."""
    return encoder(pictures, bool_masked_pos=hidden).last_hidden_state[:, 1:]


def sight_and_pixels(
    encoder: Dinov2Model,
    readout: Readout,
    frames: torch.Tensor,
    cover: torch.Tensor,
    place: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch of `Sights`, and the tokens [M, T, D] of those of its frames that were seen whole, the last M."""
    pictures = normalised(frames)
    masked = len(pictures) // MASKED_PICTURES
    seen = patch_tokens(encoder, pictures[masked:])
    loss = readout.pixel_loss(seen, pictures[masked:]) + SIGHT_WEIGHT * readout.sight_loss(seen, cover[masked:], place[masked:])
    if masked:
        hidden = torch.rand(masked, seen.shape[1], generator=generator) < HIDDEN_PATCHES
        loss = loss + 0.5 * readout.pixel_loss(patch_tokens(encoder, pictures[:masked], hidden), pictures[:masked])
    return loss, seen


def descend(
    parts: Iterable[nn.Module], loss_of: Callable[..., torch.Tensor], sights: Sights, steps: int, batch: int, rate: float
) -> None:
    """Train parts on `loss_of(frames, cover, place)`, the rate rising for a tenth of the steps and falling from there."""
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    loader = iter(DataLoader(sights, batch_size=batch, num_workers=1))
    bar = tqdm(range(steps), desc="patch encoder")
    for _ in bar:
        loss = loss_of(*next(loader))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def train_patch_encoder(sights: Sights, steps: int, batch: int, rate: float = 1.5e-3) -> Dinov2Model:
    """A new encoder, taught to see."""
    torch.manual_seed(0)
    encoder = new_patch_encoder(sights.clips.size)
    readout = Readout(encoder.config)
    generator = torch.Generator().manual_seed(0)
    descend(
        (encoder, readout),
        lambda *seen: sight_and_pixels(encoder, readout, *seen, generator)[0],
        sights,
        steps,
        batch,
        rate,
    )
    return encoder.eval().requires_grad_(False)
