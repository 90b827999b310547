"""The demo's patch encoder: a small DINOv2-layout transformer, one token for each latent pixel, taught by masked pictures."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from ..encoding import normalised
from .stills import Stills


def new_patch_encoder(size: int = 64) -> Dinov2Model:
    """The untrained encoder: [N, 3, S, S] normalised pictures -> [N, 1 + (S / 4)^2, 96] tokens."""
    return Dinov2Model(
        Dinov2Config(
            image_size=size,
            patch_size=4,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            mlp_ratio=2,
            layerscale_value=1.0,
        )
    )


def train_patch_encoder(stills: Stills, steps: int, batch: int, rate: float = 2e-3) -> Dinov2Model:
    """Teach the encoder to tell each patch's pixels, four in ten of them hidden, from the tokens around it."""
    torch.manual_seed(0)
    encoder = new_patch_encoder(stills.clips.size)
    patch = encoder.config.patch_size
    head = nn.Linear(encoder.config.hidden_size, 3 * patch * patch)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    loader = iter(DataLoader(stills, batch_size=batch))
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(range(steps), desc="patch encoder")
    for _ in bar:
        pictures = normalised((next(loader) + 1) / 2)
        target = rearrange(pictures, "n c (r p) (k q) -> n (r k) (c p q)", p=patch, q=patch)
        hidden = torch.rand(target.shape[:2], generator=generator) < 0.4
        tokens = encoder(pictures, bool_masked_pos=hidden).last_hidden_state[:, 1:]
        loss = (head(tokens) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return encoder.eval().requires_grad_(False)
