"""The demo's VAE: a small AutoencoderKL, four times smaller than the picture, twelve latent channels.

Its encoder is linear: the twelve strongest principal components of each 4x4 patch, written into AutoencoderKL's layers. A part of
the picture that moves then changes its latents in a linear way, and the patch encoder's tokens tell them linearly, too, so that the
small UNet can fetch them from elsewhere. Only the decoder is trained.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..training.muon import MuonAdamW, is_matrix
from .stills import Stills

# of the 48 numbers of a patch
LATENT_CHANNELS = 12
PATCH = 4
# far above the components in each group of the encoder's last norm, which then divides by the same in every picture
ANCHOR = 30.0
# of the latents' noise, as good as none
LOG_VARIANCE = -30.0


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


def texture(pictures: torch.Tensor) -> torch.Tensor:
    """How much pictures [N, C, S, S] vary from pixel to pixel around each place, [N, 1, S - 1, S - 1]."""
    across, down = pictures.diff(dim=3)[:, :, :-1].abs(), pictures.diff(dim=2)[:, :, :, :-1].abs()
    return functional.avg_pool2d((across + down).mean(1, keepdim=True), 5, stride=1, padding=2)


def reconstruction_loss(out: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Absolute error, which keeps edges, squared error, which keeps large errors away, and the error of the texture.

    The last keeps fine detail that the latents do not tell from being smoothed away.
    """
    out = out.float()
    error = (out - pictures).abs()
    return error.mean() + 2 * error.square().mean() + 0.3 * (texture(out) - texture(pictures)).abs().mean()


def optimizer_of(vae: AutoencoderKL, rate: float) -> MuonAdamW:
    """Muon for the decoder's hidden kernels and matrices, AdamW for the rest of what trains."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in vae.named_parameters():
        if parameter.requires_grad:
            # the first convolution reads the latents; the last, of three colours, is too thin
            groups[is_matrix(parameter) and name != "decoder.conv_in.weight"].append(parameter)
    return MuonAdamW(
        [{"params": parameters, "orthogonal": orthogonal} for orthogonal, parameters in groups.items()],
        lr=rate,
        betas=(0.9, 0.99),
        weight_decay=1e-3,
    )


def patch_components(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The strongest principal components [12, 3, 4, 4] of the 4x4 patches of pictures [N, 3, S, S], and the mean patch [3, 4, 4].

    Each is divided by the square root of its standard deviation: fine detail then counts for more than its share of the pixels, and
    for less than the large shapes.
    """
    patches = rearrange(pictures, "n c (r p) (k q) -> (n r k) (c p q)", p=PATCH, q=PATCH).double()
    mean = patches.mean(0)
    _, sizes, directions = torch.linalg.svd(patches - mean, full_matrices=False)
    deviation = sizes[:LATENT_CHANNELS] / len(patches) ** 0.5
    components = directions[:LATENT_CHANNELS] / deviation[:, None].sqrt()
    return tuple(rearrange(x, "... (c p q) -> ... c p q", p=PATCH, q=PATCH).float() for x in (components, mean))


@torch.no_grad()
def set_linear_encoder(vae: AutoencoderKL, components: torch.Tensor, mean: torch.Tensor) -> None:
    """Write components [12, 3, 4, 4] of patches around `mean` [3, 4, 4] into the encoder of a `new_vae`.

    Two strided convolutions gather the patch, every block between them passes on what it is given. The last norm and activation
    are undone: each component goes through with both signs, and SiLU(x) - SiLU(-x) = x.
    """
    encoder = vae.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    halves = encoder.down_blocks[0].downsamplers[0].conv
    for colour, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
        halves.weight[4 * colour + 2 * y + x, colour, y, x] = 1
    shortcut = encoder.down_blocks[1].resnets[0].conv_shortcut
    shortcut.weight[:12, :12, 0, 0] = torch.eye(12)
    gather, norm, last = encoder.down_blocks[1].downsamplers[0].conv, encoder.conv_norm_out, encoder.conv_out
    width = norm.num_channels // norm.num_groups
    taps = rearrange(components, "n c (down y) (right x) -> n (c y x) down right", y=2, x=2)
    for number, (tap, offset) in enumerate(zip(taps, (components * mean).sum((1, 2, 3)), strict=True)):
        place, group = divmod(number, norm.num_groups)
        for channel, sign in ((group * width + 2 * place, 1), (group * width + 2 * place + 1, -1)):
            gather.weight[channel, :12, :2, :2] = sign * tap
            gather.bias[channel] = -sign * offset
            last.weight[number, channel, 1, 1] = sign
    anchors = rearrange(gather.bias, "(g w) -> g w", w=width)[:, width // 2 :]
    anchors[:, ::2], anchors[:, 1::2] = ANCHOR, -ANCHOR
    # half of a group's channels are anchors: this is the deviation that the norm divides by
    norm.weight.fill_(ANCHOR * 0.5**0.5)
    last.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENT_CHANNELS)[:, :, None, None])
    vae.quant_conv.bias.zero_()


def train_vae(
    stills: Stills, sample: torch.Tensor, test: torch.Tensor, steps: int, batch: int, folder: Path, rate: float = 1e-3
) -> AutoencoderKL:
    """A VAE with the components of `sample` [N, 3, S, S], its decoder trained on stills; pictures in -1..1.

    Reports the PSNR on `test`, returns the running average of the weights, and resumes from `folder`.
    """
    torch.manual_seed(0)
    vae = new_vae()
    set_linear_encoder(vae, *patch_components(sample))
    vae = vae.requires_grad_(False).to(memory_format=torch.channels_last)
    vae.register_to_config(scaling_factor=latent_scale(vae, test))
    parameters = [p.requires_grad_(True) for part in (vae.decoder, vae.post_quant_conv) for p in part.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = optimizer_of(vae, rate)
    state_file, step = folder / "vae.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    loader = iter(DataLoader(Stills(stills.clips, stills.start + step * batch), batch_size=batch, num_workers=1))
    bar = tqdm(range(step, steps), initial=step, total=steps, desc="VAE")
    for now in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate(now, steps, 50)
        pictures = next(loader).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = vae.decode(latents).sample
        loss = reconstruction_loss(out, pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.99, (now + 1) / (now + 10)))
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if (now + 1) % 100 == 0 or now + 1 == steps:
            state = {"vae": vae.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "step": now + 1}
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    print(f"VAE: {round_trip_psnr(vae, test):.2f} dB on held-out photographs")
    return vae
