"""A linear map from latents to colours, for previews while a clip is sampled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import rearrange


@torch.no_grad()
def preview_map(vae: AutoencoderKL, pictures: torch.Tensor) -> dict[str, list]:
    """The best linear map from scaled latents to colours in -1..1, by least squares.

    Args:
        vae: its encoder gives the latents [N, C, h, w].
        pictures: [N, 3, S, S], 0..1.

    Returns:
        {"factors": C rows of three, "bias": three}.
    """
    latents = vae.encode(2 * pictures - 1).latent_dist.mean * vae.config.scaling_factor
    colours = F.adaptive_avg_pool2d(2 * pictures - 1, latents.shape[2:])
    known, wanted = (rearrange(x, "n c h w -> (n h w) c").double() for x in (latents, colours))
    found = torch.linalg.lstsq(F.pad(known, (0, 1), value=1.0), wanted).solution
    factors, bias = found[:-1], found[-1]
    return {"factors": [[round(v, 4) for v in row] for row in factors.tolist()], "bias": [round(v, 4) for v in bias.tolist()]}
