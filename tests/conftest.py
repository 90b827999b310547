"""Settings that must be in place before a test imports torch or a Hugging Face library."""

import os

import pytest

# Results and timings do not depend on the machine's core count; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing may be fetched at run time: a try to do so fails instead of passing on a machine with a network.
os.environ["HF_HUB_OFFLINE"] = "1"

TINY_FRAMES = 2
TINY_THRESHOLDS = (0.99, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory):
    """A base model in the demo's layout, random weights, as a folder in diffusers' layout."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

    from livephoto_core.demo.captions import corpus
    from livephoto_core.demo.text import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "base"
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus(), 300)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            projection_dim=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    image_encoder = Dinov2Model(
        Dinov2Config(
            image_size=64, patch_size=4, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    parts = {"vae": vae, "text_encoder": text_encoder, "unet": unet, "image_encoder": image_encoder}
    for name, part in {**parts, "tokenizer": tokenizer, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture
def tiny_base(tiny_base_folder):
    """The base model of `tiny_base_folder`, loaded anew for each test."""
    from livephoto_core.base import load_base

    return load_base(tiny_base_folder)


@pytest.fixture(scope="session")
def tiny_adapter_file(tiny_base_folder, tmp_path_factory):
    """A checkpoint that fits `tiny_base_folder`: random weights that move something, two frames, 64 pixels."""
    import torch

    from livephoto_core.base import load_base
    from livephoto_core.checkpoint import save_adapter
    from livephoto_core.config import AdapterConfig, ContentShape, MotionShape, ReweightShape
    from livephoto_core.diffusers_host import base_shape
    from livephoto_core.model.adapter import LivePhotoAdapter

    torch.manual_seed(1)
    config = AdapterConfig(
        base=base_shape(load_base(tiny_base_folder).unet),
        motion=MotionShape(heads=2, attention_blocks=1, max_frames=16),
        content=ContentShape("tiny", image_size=64, patch_size=4, token_width=24, width=24, heads=2, head_width=8),
        reweight=ReweightShape(layers=1, heads=2),
        frames=TINY_FRAMES,
        size=64,
        ssim_thresholds=TINY_THRESHOLDS,
    )
    adapter = LivePhotoAdapter(config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("adapter") / "tiny.safetensors"
    save_adapter(adapter, path, {"made by": "tests"})
    return path
