"""Files of the layout and size of those that people have, with random weights: SD1.5, DINOv2-large, LivePhoto, Wan2.1's VAE."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

from livephoto_core.base import SD15_CONFIGS
from livephoto_core.checkpoint import CONFIG_KEY, save_tensors
from livephoto_core.config import AdapterConfig, to_json
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.motion import sinusoids

DRAW = torch.randn(1_000_003, generator=torch.Generator().manual_seed(11))
LORA_RANK = 4
THRESHOLDS = (0.98, 0.95, 0.91, 0.87, 0.83, 0.78, 0.72, 0.65, 0.55)
# transformers 5 has new names for what the published file holds
DINOV2_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def _load(path: str) -> ModuleType:
    """A module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _original() -> ModuleType:
    """tests/core/test_base.py, which names diffusers' tensors in the original layout."""
    return _load("core/test_base.py")


def _unet() -> nn.Module:
    """SD1.5's, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(SD15_CONFIGS / "unet")))


def _attends(net: nn.Module) -> list[bool]:
    return [kind.startswith("CrossAttn") for kind in net.config.down_block_types]


def random_weights(parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """{name: float16} for parameters without values; about as large as trained ones, no two alike.

    Pieces of one draw, as drawing a billion numbers would take most of the test's time.
    """
    found = {}
    for number, (name, parameter) in enumerate(parameters):
        start = number * 7919 % len(DRAW)
        values = torch.cat([DRAW[start:], DRAW[:start]]).repeat(-(-parameter.numel() // len(DRAW)))[: parameter.numel()]
        if parameter.ndim > 1:
            values = values * (parameter.numel() // len(parameter)) ** -0.5
        else:
            # of these the weights are all norms'
            values = float(name.endswith("weight")) + 0.1 * values
        found[name] = values.view(parameter.shape).half()
    return found


def save_checkpoint(path: Path) -> None:
    """A single file of SD1.5's layout."""
    original, unet = _original(), _unet()
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(SD15_CONFIGS / "vae")))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIGS / "text_encoder"))
    tensors = {}
    for name, value in random_weights(unet.named_parameters()).items():
        tensors[f"model.diffusion_model.{original.original_unet_name(name, _attends(unet))}"] = value
    for name, value in random_weights(vae.named_parameters()).items():
        name = original.original_vae_name(name)
        # the original's attention is made of 1x1 convolutions
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[f"first_stage_model.{name}"] = value[..., None, None] if square else value
    for name, value in random_weights(text_encoder.named_parameters()).items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file(tensors, path)


def save_adapter(path: Path) -> None:
    """A LivePhoto checkpoint of the default config: no part is silent as it is before training."""
    config = AdapterConfig(ssim_thresholds=THRESHOLDS)
    with torch.device("meta"):
        adapter = LivePhotoAdapter(config)
    tensors = random_weights(adapter.named_parameters())
    for name, table in adapter.named_buffers():
        assert name.endswith(".pe")
        tensors[name] = sinusoids(*table.shape[1:])
    save_tensors(tensors, path, {CONFIG_KEY: to_json(config)})


def save_dinov2(path: Path) -> None:
    """DINOv2-large, under the names of the published file."""
    with torch.device("meta"):
        model = Dinov2Model(
            Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
        )
    tensors = {}
    for name, value in random_weights(model.named_parameters()).items():
        for new, published in DINOV2_NAMES.items():
            name = name.replace(new, published)
        tensors[name] = value
    save_file(tensors, path)


def _original_controlnet_name(name: str, attends: list[bool]) -> str:
    if match := re.match(r"controlnet_cond_embedding\.(conv_in|blocks\.(\d)|conv_out)\.", name):
        place = {"conv_in": 0, "conv_out": 14}.get(match[1], 2 + 2 * int(match[2] or 0))
        return f"input_hint_block.{place}.{name[match.end() :]}"
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.", name):
        return f"zero_convs.{match[1]}.0.{name[match.end() :]}"
    if name.startswith("controlnet_mid_block."):
        return name.replace("controlnet_mid_block", "middle_block_out.0")
    return _original().original_unet_name(name, attends)


def save_controlnet(path: Path) -> None:
    """A ControlNet for SD1.5 in the original layout."""
    with torch.device("meta"):
        net = ControlNetModel(cross_attention_dim=768)
    names = {name: _original_controlnet_name(name, _attends(net)) for name, _ in net.named_parameters()}
    save_file({f"control_model.{names[name]}": value for name, value in random_weights(net.named_parameters()).items()}, path)


def save_lora(path: Path) -> None:
    """A LoRA for the attentions of SD1.5's UNet and the queries of its text encoder, under the names that trainers give."""
    shapes = {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": weight.shape
        for name, weight in _unet().named_parameters()
        if re.search(r"attn[12]\.to_[qkv]\.weight$", name)
    }
    width = CLIPTextConfig.from_pretrained(SD15_CONFIGS / "text_encoder").hidden_size
    shapes |= {f"lora_te_text_model_encoder_layers_{layer}_self_attn_q_proj": (width, width) for layer in range(12)}
    parameters = []
    for name, (outputs, inputs) in shapes.items():
        parameters.append((f"{name}.lora_down.weight", torch.empty(LORA_RANK, inputs, device="meta")))
        parameters.append((f"{name}.lora_up.weight", torch.empty(outputs, LORA_RANK, device="meta")))
    alphas = {f"{name}.alpha": torch.tensor(0.1 * LORA_RANK) for name in shapes}
    save_file({**random_weights(parameters), **alphas}, path)


def _wan_vae_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of Wan2.1's VAE: 16 channels, a frame in four, a pixel in 8x8."""
    found = {}

    def conv(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        found.update({f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)})

    def residual(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.residual.0.gamma": (inputs, 1, 1, 1), f"{name}.residual.3.gamma": (outputs, 1, 1, 1)})
        conv(f"{name}.residual.2", outputs, inputs, 3, 3, 3)
        conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        if inputs != outputs:
            conv(f"{name}.shortcut", outputs, inputs, 1, 1, 1)

    def ends(half: str, first: tuple[int, int], middle: int, last: tuple[int, int]) -> None:
        conv(f"{half}.conv1", *first, 3, 3, 3)
        for place in (0, 2):
            residual(f"{half}.middle.{place}", middle, middle)
        found[f"{half}.middle.1.norm.gamma"] = (middle, 1, 1)
        conv(f"{half}.middle.1.to_qkv", 3 * middle, middle, 1, 1)
        conv(f"{half}.middle.1.proj", middle, middle, 1, 1)
        found[f"{half}.head.0.gamma"] = (last[1], 1, 1, 1)
        conv(f"{half}.head.2", *last, 3, 3, 3)

    ends("encoder", (96, 3), 384, (32, 384))
    conv("conv1", 32, 32, 1, 1, 1)
    conv("conv2", 16, 16, 1, 1, 1)
    ends("decoder", (384, 16), 384, (3, 96))
    place = 0
    for number, (inputs, outputs) in enumerate(((96, 96), (96, 192), (192, 384), (384, 384))):
        for source in (inputs, outputs):
            residual(f"encoder.downsamples.{place}", source, outputs)
            place += 1
        if number < 3:
            conv(f"encoder.downsamples.{place}.resample.1", outputs, outputs, 3, 3)
            if number > 0:
                conv(f"encoder.downsamples.{place}.time_conv", outputs, outputs, 3, 1, 1)
            place += 1
    place = 0
    for number, (inputs, outputs) in enumerate(((384, 384), (192, 384), (192, 192), (96, 96))):
        for source in (inputs, outputs, outputs):
            residual(f"decoder.upsamples.{place}", source, outputs)
            place += 1
        if number < 3:
            conv(f"decoder.upsamples.{place}.resample.1", outputs // 2, outputs, 3, 3)
            if number < 2:
                conv(f"decoder.upsamples.{place}.time_conv", 2 * outputs, outputs, 3, 1, 1)
            place += 1
    return found


def save_wan_vae(path: Path) -> None:
    """Wan2.1's VAE; ComfyUI reads it in this size only."""
    save_file(random_weights((name, torch.empty(shape, device="meta")) for name, shape in _wan_vae_shapes().items()), path)


def save_wan(path: Path) -> None:
    """LivePhoto-Wan2.1's base file with a Wan2.1 of two narrow blocks; the text module has its real size."""
    save_file({name: tensor.bfloat16() for name, tensor in _load("wan_recipe.py").weights().items()}, path)


def save_wan_lora(path: Path) -> None:
    """Its LoRA."""
    save_file(_load("wan_recipe.py").lora(), path)
