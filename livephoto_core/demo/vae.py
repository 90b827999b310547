"""The demo's VAE: a small AutoencoderKL, four times smaller than the picture, twelve latent channels."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader
from tqdm import tqdm

from .stills import Stills

# four channels at this size end near 23 dB whatever the training; twelve leave room above 30
LATENT_CHANNELS = 12


def new_vae() -> AutoencoderKL:
    """The untrained VAE: [N, 3, S, S] <-> [N, 12, S/4, S/4]."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


def psnr(a: torch.Tensor, b: torch.Tensor, span: float = 2.0) -> torch.Tensor:
    """Peak signal-to-noise ratio [N] in dB of pictures [N, C, H, W] whose values span `span`."""
    return 10 * torch.log10(span**2 / (a - b).float().square().mean((1, 2, 3)).clamp(min=1e-10))


@torch.no_grad()
def round_trip_psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of decode(mean of encode) over pictures [N, 3, S, S] in -1..1."""
    out = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in pictures.split(16)])
    return float(psnr(out.clamp(-1, 1), pictures).mean())


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, pictures: torch.Tensor) -> float:
    """The factor that gives latents a standard deviation of one."""
    return float(1 / torch.cat([vae.encode(p).latent_dist.mean for p in pictures.split(16)]).std())


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate: a linear warm-up under a cosine down to 2 %."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def reconstruction_loss(out: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Absolute error, which keeps edges, and squared error, which keeps large errors away."""
    error = (out.float() - pictures).abs()
    return error.mean() + 2 * error.square().mean()


def train_vae(
    stills: Stills, test: torch.Tensor, steps: int, batch: int, folder: Path, rate: float = 2e-3
) -> AutoencoderKL:
    """Train on stills in -1..1, report the held-out PSNR, keep a running average of the weights and resume from `folder`."""
    torch.manual_seed(0)
    vae = new_vae().to(memory_format=torch.channels_last)
    average = new_vae().requires_grad_(False).to(memory_format=torch.channels_last)
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    state_file, step = folder / "vae.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    loader = iter(DataLoader(Stills(stills.clips, stills.start + step * batch), batch_size=batch))
    for now in tqdm(range(step, steps), initial=step, total=steps, desc="VAE"):
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate(now, steps, 100)
        pictures = next(loader).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            out = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(out, pictures) + 1e-6 * posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(0.997, (now + 1) / (now + 10))
        for mean, value in zip(average.parameters(), vae.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)
        if (now + 1) % 100 == 0 or now + 1 == steps:
            tqdm.write(f"VAE step {now + 1}: loss {loss.item():.4f}, held out {round_trip_psnr(average, test):.2f} dB")
            torch.save(
                {
                    "vae": vae.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": now + 1,
                },
                state_file.with_suffix(".tmp"),
            )
            state_file.with_suffix(".tmp").replace(state_file)
    average.register_to_config(scaling_factor=latent_scale(average, test))
    return average


def refine_decoder(
    vae: AutoencoderKL, stills: Stills, test: torch.Tensor, steps: int, batch: int, rate: float = 1e-3
) -> AutoencoderKL:
    """Train the decoder alone on the latents as they are, so that what was learnt on these latents stays valid."""
    vae = vae.requires_grad_(False).to(memory_format=torch.channels_last)
    parameters = [p.requires_grad_(True) for part in (vae.decoder, vae.post_quant_conv) for p in part.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    loader = iter(DataLoader(stills, batch_size=batch))
    bar = tqdm(range(steps), desc="decoder")
    for now in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate(now, steps, 50)
        pictures = next(loader).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean
            out = vae.decode(latents).sample
        loss = reconstruction_loss(out, pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.995, (now + 1) / (now + 10)))
        bar.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    print(f"decoder refined: {round_trip_psnr(vae, test):.2f} dB on held-out photographs")
    return vae
