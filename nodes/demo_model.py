"""The bundled demo model as ComfyUI's own MODEL, CLIP, VAE and CLIP_VISION.

The demo has SD1.5's layout with fewer channels, so ComfyUI's own classes hold it under a config of its own; ComfyUI's lists of
supported models stay as they are.
"""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from torch import nn

from ..livephoto_core.encoding import PHOTO_MEAN, PHOTO_STD
from .precision import weight_dtype

FOLDER = Path(__file__).parent.parent / "livephoto_core" / "demo" / "weights"
WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE_NAMES = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.to_", "mid.attn_1."),
    ("conv_norm_out", "norm_out"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("conv_shortcut", "nin_shortcut"),
)


def _config(part: str, name: str = "config.json") -> dict:
    return json.loads((FOLDER / part / name).read_text(encoding="utf-8"))


def _tensors(part: str, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(FOLDER / part / name), safe_load=True)


def _operations(groups: int) -> Any:
    """ComfyUI's layers with so many groups in each GroupNorm: its UNet asks for SD1.5's 32."""

    class Operations(comfy.ops.manual_cast):
        class GroupNorm(comfy.ops.manual_cast.GroupNorm):
            def __init__(self, num_groups: int, num_channels: int, **kwargs: Any):
                super().__init__(groups, num_channels, **kwargs)

    return Operations


class Multiple(Fraction):
    """A multiple that gives whole channels: ComfyUI multiplies it with the width of the first level."""

    def __mul__(self, other: int) -> int:
        return int(super().__mul__(other))

    __rmul__ = __mul__


class DemoLatents(comfy.latent_formats.LatentFormat):
    """The demo VAE's latents; previews come from a linear map to colours."""

    def __init__(self, vae: dict, preview: dict):
        self.latent_channels = vae["latent_channels"]
        self.scale_factor = vae["scaling_factor"]
        self.latent_rgb_factors, self.latent_rgb_factors_bias = preview["factors"], preview["bias"]


class DemoConfig(comfy.supported_models.SD15):
    """SD1.5 with the demo's numbers."""

    unet_extra_config: dict = {}  # noqa: RUF012
    latent_format = staticmethod(lambda: DemoLatents(_config("vae"), _config("vae", "preview.json")))

    def inpaint_model(self) -> bool:
        # more than four latent channels are no inpainting model here
        return False

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        prediction = _config("scheduler", "scheduler_config.json")["prediction_type"]
        return comfy.model_base.ModelType.V_PREDICTION if prediction == "v_prediction" else comfy.model_base.ModelType.EPS


def unet_config(config: dict) -> dict:
    """ComfyUI's UNet arguments for a diffusers UNet config of SD1.5's kind."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depth = [int(kind.startswith("CrossAttn")) for kind in config["down_block_types"]]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "channel_mult": [Multiple(c, channels[0]) for c in channels],
        "num_res_blocks": [layers] * len(channels),
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "num_heads": config["attention_head_dim"],
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }


def load_model() -> Any:
    """The demo's UNet as a MODEL."""
    diffusers = _config("unet")
    config = DemoConfig(unet_config(diffusers))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    tensors = {names[name]: tensor for name, tensor in _tensors("unet").items()}
    config.custom_operations = _operations(diffusers["norm_num_groups"])
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(weight_dtype(device, 0, [torch.float32]), None)
    model = config.get_model(tensors, "", device=comfy.model_management.unet_offload_device())
    model.load_model_weights(tensors, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def vae_names(tensors: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """A diffusers VAE's tensors under the names of Stable Diffusion's original layout."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in VAE_NAMES:
            name = name.replace(ours, theirs)
        for level in range(levels):
            name = name.replace(f"down_blocks.{level}.resnets", f"down.{level}.block").replace(
                f"down_blocks.{level}", f"down.{level}"
            )
            # the original counts the decoder's levels from the picture's side
            up = f"up.{levels - 1 - level}"
            name = name.replace(f"up_blocks.{level}.resnets", f"{up}.block").replace(f"up_blocks.{level}", up)
        if ".attn_1." in name and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        renamed[name] = tensor
    return renamed


def load_vae() -> Any:
    """The demo's VAE."""
    config = _config("vae")
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    tensors = vae_names(_tensors("vae"), len(channels))
    vae = comfy.sd.VAE(
        sd=tensors, config={"params": {"ddconfig": shape, "embed_dim": config["latent_channels"]}}, dtype=torch.float32
    )
    for module in vae.first_stage_model.modules():
        if isinstance(module, nn.GroupNorm):
            # ComfyUI's VAE has 32 groups in each; they hold no weights of their own
            module.num_groups = config["norm_num_groups"]
    vae.latent_channels = config["latent_channels"]
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(channels) - 1)
    return vae


class DemoTextModel(comfy.sd1_clip.SDClipModel):
    """The demo's text encoder: CLIP's layout with a vocabulary of its own."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None):
        config = _config("text_encoder")
        start, end, pad = (config[f"{name}_token_id"] for name in ("bos", "eos", "pad"))
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            special_tokens={"start": start, "end": end, "pad": pad},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        words = self.operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        self.transformer.set_input_embeddings(words)


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """The demo's tokenizer, with ComfyUI's word weights."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
        from transformers import PreTrainedTokenizerFast

        super().__init__(
            str(FOLDER / "tokenizer"),
            embedding_directory=embedding_directory,
            embedding_size=_config("text_encoder")["hidden_size"],
            tokenizer_class=PreTrainedTokenizerFast,
            tokenizer_data=tokenizer_data or {},
        )


def load_clip() -> Any:
    """The demo's text encoder and tokenizer as a CLIP."""
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=DemoTokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_model=DemoTextModel),
    )
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    tensors = _tensors("text_encoder", "model.safetensors")
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    width = _config("text_encoder")["hidden_size"]
    # what ComfyUI computes from it, the pooled text, nothing of SD1.5's kind reads
    clip.load_sd({**named, "text_projection.weight": torch.eye(width)})
    return clip


class DemoPatchEncoder(nn.Module):
    """The demo's DINOv2, called as ComfyUI calls its image encoders."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: torch.Tensor, intermediate_output: Any = None):
        out = self.encoder(pixel_values, output_hidden_states=True)
        return out.last_hidden_state, out.hidden_states[-2], out.last_hidden_state[:, 0], None


class DemoClipVision(comfy.clip_vision.ClipVisionModel):
    """The demo's patch encoder as a CLIP_VISION: ComfyUI's own DINOv2 has patches of 14 pixels only."""

    def __init__(self) -> None:
        from transformers import Dinov2Model

        encoder = Dinov2Model.from_pretrained(FOLDER / "image_encoder", local_files_only=True).float().eval()
        self.image_size = encoder.config.image_size
        self.image_mean, self.image_std = list(PHOTO_MEAN), list(PHOTO_STD)
        self.return_all_hidden_states = False
        # newer ComfyUI asks for these too
        self.model_type, self.config, self.naf = "dinov2", encoder.config.to_dict(), None
        self.load_device = comfy.model_management.text_encoder_device()
        self.dtype = torch.float32
        self.model = DemoPatchEncoder(encoder)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.model, load_device=self.load_device, offload_device=comfy.model_management.text_encoder_offload_device()
        )
