"""The whole of SD1.5 and the whole adapter, with random weights: they fit, train and sample. Needs 8 GB of memory."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from livephoto_core.conditioning import ClipCondition, even_levels
from livephoto_core.config import AdapterConfig
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.reweight import apply_weights
from livephoto_core.pipeline import make_sampler
from livephoto_core.training.model import Batch, TrainingModel

pytestmark = pytest.mark.slow

FRAMES = 2
SIDE = 8
GRID = (37, 37)
SD15_PARAMETERS = 859_520_964
COUNTS = {
    "condition stem": 17_280,
    "motion modules": 453_209_280,
    "content attention": 26_987_968,
    "text re-weighter": 21_277_456,
}


def sd15_unet() -> nn.Module:
    """SD1.5's UNet with random weights: one draw, repeated, as drawing all 860 million would take most of the test's time."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet.to_empty(device="cpu")
    draw = torch.randn(1_000_003)
    with torch.no_grad():
        for parameter in unet.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            for part in parameter.view(-1).split(len(draw)):
                torch.mul(draw[: len(part)], scale, out=part)
    return unet.eval()


def test_full_size_trains_and_samples_a_step():
    torch.manual_seed(0)
    unet, adapter = sd15_unet(), LivePhotoAdapter(AdapterConfig())
    assert sum(parameter.numel() for parameter in unet.parameters()) == SD15_PARAMETERS
    for name, count in adapter.parameter_counts().items():
        print(f"{name}: {count:,}")
    assert adapter.parameter_counts() == COUNTS

    small = CLIPTextConfig(
        vocab_size=100,
        hidden_size=768,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=12,
        bos_token_id=98,
        eos_token_id=99,
    )
    latents = torch.randn(1, adapter.config.frames, 4, SIDE, SIDE)
    tokens = torch.randn(1, GRID[0] * GRID[1], 1024)
    levels = even_levels(5, 1, FRAMES)
    schedule = adapter.config.schedule
    text_encoder = CLIPTextModel(small)
    model = TrainingModel(unet, adapter, text_encoder, schedule, "epsilon", freeze_base=True)
    batch = Batch(
        latents=latents,
        noise=torch.randn(1, FRAMES, 4, SIDE, SIDE),
        timesteps=torch.tensor([500]),
        text_ids=torch.randint(0, 99, (1, 77)),
        tokens=tokens,
        grid=GRID,
        levels=levels,
        places=torch.tensor([0, adapter.config.frames - 1]),
        length=adapter.config.frames,
    )
    before = {"stem": adapter.stem.conv.weight.clone(), "base": unet.conv_in.weight.clone()}
    loss = model(batch).mean()
    loss.backward()
    torch.optim.SGD(model.trained().values(), lr=1e-3).step()
    assert torch.isfinite(loss)
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert torch.equal(unet.conv_in.weight, before["base"])
    assert not torch.equal(adapter.stem.conv.weight, before["stem"])
    assert all(torch.isfinite(parameter).all() for parameter in adapter.parameters())
    model.host.detach()
    adapter.zero_grad()

    solver = make_sampler("dpmpp_2m", schedule, "epsilon")
    solver.set_timesteps(20)
    x = torch.randn(1, FRAMES, 4, SIDE, SIDE)
    host = DiffusersHost(unet, adapter)
    condition = ClipCondition(latents[:, 0], tokens, GRID, levels)
    with torch.no_grad(), host, host.conditioned(condition):
        text = text_encoder(batch.text_ids).last_hidden_state
        text = apply_weights(text, adapter.reweight(text, FRAMES))
        noise = unet(rearrange(x, "b f c h w -> (b f) c h w"), solver.timesteps[0], text).sample
        stepped = solver.step(rearrange(noise, "(b f) c h w -> b f c h w", b=1), solver.timesteps[0], x).prev_sample
    assert stepped.shape == x.shape
    assert torch.isfinite(stepped).all()
    assert not torch.equal(stepped, x)
