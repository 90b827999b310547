"""The demo's patch encoder: a small DINOv2-layout transformer, one token for each latent pixel.

DINOv2's tokens tell what belongs together, learnt from a hundred million pictures. This one learns it from first frames
of scenes like the clips': the pixels of patches, hidden ones too, and where the thing is that may move. So a place that the thing
will reach can tell how far off its middle is, and whether what it fetches there is the thing or what lies behind.
"""

from __future__ import annotations

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
from .vae import learning_rate

LAYERS = 6
RATE = 1.5e-3
# a share of the pictures is seen with a share of the patches hidden
MASKED_PICTURES, HIDDEN_PATCHES = 0.2, 0.4
# beside the error of the pixels that are seen, which is of numbers around one
SIGHT_WEIGHT, HIDDEN_WEIGHT = 2.0, 0.5
# scenes other than the caches', which are of seeds 0 and 1; those without a thing teach only pixels
SEED, SIGHT_THING_SHARE = 77, 0.8
# a thing's usual half size in frame units: sizes are told as log(half / this)
USUAL_HALF = 0.4


def new_patch_encoder(size: int = 64) -> Dinov2Model:
    """The untrained encoder: [N, 3, S, S] normalised pictures -> [N, 1 + (S / 4)^2, 96] tokens."""
    return Dinov2Model(
        Dinov2Config(
            image_size=size,
            patch_size=4,
            hidden_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=3,
            mlp_ratio=2,
            layerscale_value=1.0,
        )
    )


def sight_clips() -> ClipSet:
    """Scenes of the training photographs to learn to see from."""
    train, _ = package_photos()
    return ClipSet(train, SHAPES, seed=SEED, thing_share=SIGHT_THING_SHARE, odd_share=ODD_SHARE, mirror_share=MIRROR_SHARE)


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


def loss_of(
    encoder: Dinov2Model,
    readout: Readout,
    frames: torch.Tensor,
    cover: torch.Tensor,
    place: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """The loss of a batch of `Sights`: the first pictures are seen with patches hidden, for their pixels alone."""
    pictures = normalised(frames)
    masked = round(MASKED_PICTURES * len(pictures))
    tokens = patch_tokens(encoder, pictures[masked:])
    loss = readout.pixel_loss(tokens, pictures[masked:]) + SIGHT_WEIGHT * readout.sight_loss(tokens, cover[masked:], place[masked:])
    if masked:
        hidden = torch.rand(masked, tokens.shape[1], generator=generator) < HIDDEN_PATCHES
        loss = loss + HIDDEN_WEIGHT * readout.pixel_loss(patch_tokens(encoder, pictures[:masked], hidden), pictures[:masked])
    return loss


def train_patch_encoder(sights: Sights, steps: int, batch: int) -> tuple[Dinov2Model, Readout]:
    """A new encoder, taught to see, and what reads out of its tokens what it sees; batches of three or more have hidden patches."""
    torch.manual_seed(0)
    encoder = new_patch_encoder(sights.clips.size)
    readout = Readout(encoder.config)
    parameters = [*encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    loader = iter(DataLoader(sights, batch_size=batch, num_workers=1))
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(range(steps), desc="patch encoder")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = RATE * learning_rate(step, steps, max(1, steps // 10))
        loss = loss_of(encoder, readout, *next(loader), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return encoder.eval().requires_grad_(False), readout.eval().requires_grad_(False)
