"""The frozen model that an adapter sits on: VAE, text encoder, UNet, noise schedule, and the photo's patch encoder.

Nothing is ever fetched: what a folder or a file lacks is asked for by name.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import PREDICTION_TYPES, NoiseSchedule
from .errors import LivePhotoError, first_line

SD15_CONFIGS = Path(__file__).parent / "configs" / "sd15"
_SINGLE_FILE_PREFIXES = {
    "UNet": "model.diffusion_model.",
    "VAE": "first_stage_model.",
    "text encoder": "cond_stage_model.transformer.",
}


@dataclass
class Base:
    """A Stable Diffusion v1.5 model in its parts, in evaluation mode, float32 as it is loaded, without gradients.

    `schedule` and `prediction_type` ("epsilon" or "v_prediction") are those it was trained with. `image_encoder` is a
    Dinov2Model, None where neither the folder nor the caller gave one.
    """

    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    unet: nn.Module
    schedule: NoiseSchedule
    prediction_type: str
    image_encoder: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Base:
        """Move every part, and cast it where a dtype is given; returns itself. Latents and pictures stay float32 outside of it."""
        for part in (self.vae, self.text_encoder, self.unet, self.image_encoder):
            if part is not None:
                part.to(device, dtype)
        return self


def load_base(
    path: str | Path, image_encoder: str | Path | None = None, tokenizer: str | Path | None = None
) -> Base:
    """Read a base model.

    Args:
        path: a folder in diffusers' layout (vae, text_encoder, tokenizer, unet, scheduler, perhaps image_encoder), or a
            single-file SD1.5 checkpoint (.safetensors or .ckpt).
        image_encoder: a folder with a DINOv2 model, instead of the folder's own.
        tokenizer: a folder with a tokenizer, instead of the folder's own; a single file has none.

    Raises:
        LivePhotoError: a missing or damaged part, named, or a model that is not of SD1.5's layout.
    """
    path = Path(path)
    if path.is_dir():
        base = _load_folder(path, tokenizer)
    elif path.is_file():
        base = load_single_file(path, tokenizer)
    else:
        raise LivePhotoError(f"there is no base model at {path}: give a diffusers folder or a single-file SD1.5 checkpoint")
    own = path / "image_encoder"
    if image_encoder is None and own.is_dir():
        image_encoder = own
    if image_encoder is not None:
        base.image_encoder = load_image_encoder(image_encoder)
    return base


def load_vae(path: str | Path) -> nn.Module:
    """Read a VAE (diffusers' layout) from a folder.

    Raises:
        LivePhotoError: no such folder, or no whole VAE in it.
    """
    from diffusers import AutoencoderKL

    return _load_part(AutoencoderKL, Path(path), "a VAE")


def load_image_encoder(path: str | Path) -> nn.Module:
    """Read a DINOv2 model (transformers' layout) from a folder.

    Raises:
        LivePhotoError: no such folder, or no whole DINOv2 in it.
    """
    from transformers import Dinov2Model

    path = Path(path)
    kind = _model_type(path)
    # one with registers has all of DINOv2's tensors too, and sees something else without its own
    if kind not in (None, "dinov2"):
        raise LivePhotoError(f"{path} holds a model of kind {kind!r}, LivePhoto sees by 'dinov2': give a DINOv2 without registers")
    return _load_part(Dinov2Model, path, "a DINOv2 image encoder")


def load_single_file(path: Path, tokenizer: str | Path | None, configs: Path = SD15_CONFIGS) -> Base:
    """Read a checkpoint in Stable Diffusion's original layout; `configs` holds the parts' configs in diffusers' layout.

    Raises:
        LivePhotoError: not such a checkpoint, one of another family, one that lacks tensors, or no tokenizer given.
    """
    if tokenizer is None:
        raise LivePhotoError(
            f"{path} holds no tokenizer, as no single-file checkpoint does: give --tokenizer DIR, a folder with CLIP's "
            "vocab.json and merges.txt (the tokenizer folder of any SD1.5 model in diffusers' layout)"
        )
    from diffusers import AutoencoderKL, UNet2DConditionModel

    words = load_tokenizer(tokenizer)
    tensors = read_tensors(path)
    _refuse_other_families(path, tensors, configs)
    schedule, prediction_type = _read_scheduler(configs / "scheduler" / "scheduler_config.json")
    return Base(
        vae=_convert(AutoencoderKL, "VAE", path, tensors, configs / "vae"),
        text_encoder=_convert_text_encoder(path, tensors, configs / "text_encoder"),
        tokenizer=words,
        unet=_convert(UNet2DConditionModel, "UNet", path, tensors, configs / "unet"),
        schedule=schedule,
        prediction_type="v_prediction" if "v_pred" in tensors else prediction_type,
    )


def load_tokenizer(path: str | Path) -> Any:
    """Read a tokenizer from a folder.

    Raises:
        LivePhotoError: no such folder, or no tokenizer in it.
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    path = Path(path)
    if not path.is_dir():
        raise LivePhotoError(f"there is no tokenizer folder at {path}: give a folder with CLIP's vocab.json and merges.txt")
    # vocab.json and merges.txt alone do not say whose they are
    names = {file.name for file in path.iterdir()}
    bare = {"vocab.json", "merges.txt"} <= names and names.isdisjoint({"tokenizer_config.json", "tokenizer.json", "config.json"})
    kind = CLIPTokenizer if bare else AutoTokenizer
    try:
        return kind.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise LivePhotoError(
            f"cannot read a tokenizer from {path} ({first_line(error)}): give a folder with CLIP's vocab.json and merges.txt"
        ) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a .ckpt, .pt, .pth or .bin one, read without running any code in it.

    Raises:
        LivePhotoError: a damaged file, or one that holds more than tensors.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LivePhotoError(
            f"{path} is not a checkpoint of tensors alone, and code in checkpoints is never run: give a .safetensors file"
        ) from error
    # torch's reader of old files trips in any way over a damaged one
    except Exception as error:
        raise LivePhotoError(f"cannot read {path} ({first_line(error)}): the file is damaged, get it again") from error
    values = values.get("state_dict", values) if isinstance(values, dict) else {}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)} if isinstance(values, dict) else {}


def _load_folder(path: Path, tokenizer: str | Path | None) -> Base:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    wanted = ["vae", "text_encoder", "unet", "scheduler"] + (["tokenizer"] if tokenizer is None else [])
    missing = [name for name in wanted if not (path / name).is_dir()]
    if missing:
        raise LivePhotoError(
            f"{path} lacks {', '.join(missing)}: give a folder in diffusers' layout (vae, text_encoder, tokenizer, unet, "
            "scheduler) or a single-file checkpoint"
        )
    schedule, prediction_type = _read_scheduler(path / "scheduler" / "scheduler_config.json")
    return Base(
        vae=load_vae(path / "vae"),
        text_encoder=_load_part(CLIPTextModel, path / "text_encoder", "a CLIP text encoder"),
        tokenizer=load_tokenizer(path / "tokenizer" if tokenizer is None else tokenizer),
        unet=_load_part(UNet2DConditionModel, path / "unet", "an SD1.5 UNet"),
        schedule=schedule,
        prediction_type=prediction_type,
    )


def _model_type(folder: Path) -> str | None:
    """What transformers calls the model in a folder; None where its config cannot be read, which loading it tells better."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _variant(folder: Path) -> str | None:
    """"fp16" for a folder that holds its weights in that variant alone, as models are often fetched."""
    names = [path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _load_part(kind: Any, folder: Path, what: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise LivePhotoError(f"{folder} holds no config.json: give the folder of {what}")
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, variant=_variant(folder)
        )
    # the libraries raise almost anything for a damaged folder
    except Exception as error:
        raise LivePhotoError(
            f"cannot load {what} from {folder} ({first_line(error)}): the folder is incomplete or damaged, get it again"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise LivePhotoError(f"{folder} lacks {len(missing)} tensors of {what}, such as {missing[0]}: get it again")
    return _frozen(model)


def _frozen(model: nn.Module) -> nn.Module:
    return model.float().eval().requires_grad_(False)


def _read_scheduler(path: Path) -> tuple[NoiseSchedule, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schedule = NoiseSchedule(
            values.get("beta_schedule", "linear"),
            float(values["beta_start"]),
            float(values["beta_end"]),
            int(values.get("num_train_timesteps", 1000)),
        )
        prediction_type = values.get("prediction_type", "epsilon")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LivePhotoError(f"cannot read the noise schedule from {path} ({first_line(error)}): get the file again") from error
    if schedule.kind not in ("linear", "scaled_linear") or prediction_type not in PREDICTION_TYPES:
        raise LivePhotoError(
            f"{path} asks for {schedule.kind!r} betas and {prediction_type!r}; known are linear and scaled_linear, "
            f"{' and '.join(PREDICTION_TYPES)}: use an SD1.5 base"
        )
    return schedule, prediction_type


def _refuse_other_families(path: Path, tensors: dict[str, torch.Tensor], configs: Path) -> None:
    prefix = _SINGLE_FILE_PREFIXES["UNet"]
    first = tensors.get(f"{prefix}input_blocks.0.0.weight")
    text = tensors.get(f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    if first is None or any(name.startswith("conditioner.") for name in tensors):
        raise LivePhotoError(f"{path} is not a single-file SD1.5 checkpoint ({len(tensors)} tensors): give an SD1.5 one")
    wanted = json.loads((configs / "unet" / "config.json").read_text(encoding="utf-8"))
    if first.shape[1] != wanted["in_channels"]:
        raise LivePhotoError(
            f"the UNet in {path} takes {first.shape[1]} channels, SD1.5 {wanted['in_channels']} (an inpainting model?): "
            "give a plain SD1.5 checkpoint"
        )
    if text is None or text.shape[1] != wanted["cross_attention_dim"]:
        width = "none" if text is None else text.shape[1]
        raise LivePhotoError(
            f"LivePhoto needs an SD1.5 model (cross-attention width {wanted['cross_attention_dim']}); {path} has {width}: "
            "load an SD1.5 checkpoint"
        )


def _convert(kind: Any, part: str, path: Path, tensors: dict[str, torch.Tensor], config: Path) -> nn.Module:
    prefix = _SINGLE_FILE_PREFIXES[part]
    own = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        model = kind.from_single_file(own, config=str(config), local_files_only=True)
    # the converter raises KeyError, ValueError, RuntimeError or its own kind, by what is wrong
    except Exception as error:
        raise LivePhotoError(f"{path} holds no whole {part} ({type(error).__name__}: {first_line(error)}): get it again") from error
    # the two layouts have the same tensors under other names; the converter leaves out what it does not find
    lacking = len(model.state_dict()) - len(own)
    if lacking > 0:
        raise LivePhotoError(f"the {part} in {path} lacks {lacking} tensors: the file is damaged, get it again")
    return _frozen(model)


def _convert_text_encoder(path: Path, tensors: dict[str, torch.Tensor], config: Path) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = _SINGLE_FILE_PREFIXES["text encoder"]
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    model = CLIPTextModel(CLIPTextConfig.from_pretrained(config))
    # newer transformers dropped the level "text_model"
    if not any(name.startswith("text_model.") for name in model.state_dict()):
        own = {name.removeprefix("text_model."): value for name, value in own.items()}
    try:
        missing, _ = model.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise LivePhotoError(f"the text encoder in {path} has tensors of other shapes: give an SD1.5 checkpoint") from error
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing:
        raise LivePhotoError(f"the text encoder in {path} lacks {len(missing)} tensors, such as {missing[0]}: get it again")
    return _frozen(model)
