"""A UNet and an adapter of SD1.5's layout, as small as it goes."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from livephoto_core.conditioning import ClipCondition
from livephoto_core.config import AdapterConfig, BaseShape, ContentShape, MotionShape, ReweightShape
from livephoto_core.model.adapter import LivePhotoAdapter

CHANNELS = (16, 32)
CONTEXT = 24
TOKENS = 12


@pytest.fixture
def make_unet():
    """Makes a UNet that no fixture holds; each is the same."""

    def make() -> UNet2DConditionModel:
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=CHANNELS,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=CONTEXT,
            norm_num_groups=8,
            attention_head_dim=4,
        ).eval()

    return make


@pytest.fixture
def tiny_unet(make_unet):
    return make_unet()


@pytest.fixture
def tiny_config():
    return AdapterConfig(
        base=BaseShape(
            block_channels=CHANNELS,
            layers_per_block=1,
            block_attention=(True, False),
            context_width=CONTEXT,
            norm_groups=8,
        ),
        motion=MotionShape(heads=4, max_frames=8),
        content=ContentShape(token_width=TOKENS, width=20, heads=2, head_width=8),
        reweight=ReweightShape(layers=1, heads=4),
        frames=4,
        size=64,
    )


@pytest.fixture
def randomised():
    """Fills an adapter's weights, so that no part is silent as it is before training."""

    def fill(adapter: LivePhotoAdapter, seed: int = 1) -> LivePhotoAdapter:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        return adapter.eval()

    return fill


@pytest.fixture
def tiny_adapter(tiny_config, randomised):
    return randomised(LivePhotoAdapter(tiny_config))


@pytest.fixture
def tiny_condition():
    """Makes the condition of `clips` different clips at an 8x8 latent."""

    def make(clips: int = 1, frames: int = 4, seed: int = 2) -> ClipCondition:
        generator = torch.Generator().manual_seed(seed)
        return ClipCondition(
            latent=torch.randn(clips, 4, 8, 8, generator=generator),
            tokens=torch.randn(clips, 6, TOKENS, generator=generator),
            grid=(2, 3),
            levels=torch.rand(clips, frames, generator=generator) * 9 + 1,
        )

    return make
