"""The base model: folders in diffusers' layout, single files in the original one, and what goes in and out of it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from livephoto_core.base import SD15_CONFIGS, load_base, load_image_encoder, load_single_file, load_tokenizer, read_tensors
from livephoto_core.checkpoint import save_adapter
from livephoto_core.cli import main
from livephoto_core.config import AdapterConfig, BaseShape, ContentShape, MotionShape, NoiseSchedule, ReweightShape
from livephoto_core.diffusers_host import base_shape
from livephoto_core.encoding import decode, encode_photo, encode_text, photo_tokens
from livephoto_core.errors import LivePhotoError
from livephoto_core.media import read_clip
from livephoto_core.media_write import write_picture
from livephoto_core.model.adapter import LivePhotoAdapter

CONTENT = ContentShape("tiny", image_size=64, patch_size=4, token_width=24, width=24, heads=2, head_width=8)


def test_folder(tiny_base):
    assert tiny_base.prediction_type == "v_prediction"
    assert tiny_base.schedule == NoiseSchedule()
    assert tiny_base.image_encoder is not None
    for part in (tiny_base.vae, tiny_base.text_encoder, tiny_base.unet, tiny_base.image_encoder):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_half_precision_on_disk_is_float32_in_memory(tiny_base_folder, tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    for part in ("vae", "unet"):
        getattr(tiny_base, part).half().save_pretrained(folder / part)
    base = load_base(folder)
    assert {p.dtype for part in (base.vae, base.unet) for p in part.parameters()} == {torch.float32}


def test_a_folder_of_half_precision_variants_alone(tiny_base_folder, tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    for part in ("vae", "unet", "text_encoder"):
        for weights in (folder / part).glob("*.safetensors"):
            weights.unlink()
        getattr(tiny_base, part).half().save_pretrained(folder / part, variant="fp16")
    base = load_base(folder)
    for part in ("vae", "unet", "text_encoder"):
        expected = getattr(tiny_base, part).state_dict()
        for name, value in getattr(base, part).state_dict().items():
            assert torch.equal(value, expected[name].float()), name


def test_a_tokenizer_of_vocabulary_and_merges_alone(tiny_base, tiny_base_folder, tmp_path):
    """What every message asks for, as many SD1.5 checkpoints' users have it."""
    model = json.loads((tiny_base_folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    shape = {"padding": "max_length", "max_length": 24, "truncation": True}
    for text in ("the camera pans left", "Snow falls, 3 balls", ""):
        assert load_tokenizer(tmp_path)(text, **shape).input_ids == tiny_base.tokenizer(text, **shape).input_ids


def test_dinov2_with_registers_is_another_model(tiny_base, tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    values = tiny_base.image_encoder.config.to_dict()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**{name: values[name] for name in names}))
    model.save_pretrained(tmp_path)
    with pytest.raises(LivePhotoError, match=r"kind 'dinov2_with_registers'.*without registers"):
        load_image_encoder(tmp_path)


def test_photo_through_the_vae(tiny_base):
    photos = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    latents = encode_photo(tiny_base, photos)
    assert latents.shape == (5, 12, 16, 16)
    pictures = decode(tiny_base, latents, slice=2)
    assert pictures.shape == photos.shape
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.allclose(pictures, decode(tiny_base, latents, slice=8), atol=1e-5)


def test_latents_carry_the_vaes_scale(tiny_base):
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, picture = encode_photo(tiny_base, photo), decode(tiny_base, encode_photo(tiny_base, photo))
    tiny_base.vae.register_to_config(scaling_factor=0.5)
    assert torch.allclose(encode_photo(tiny_base, photo), 0.5 * plain)
    assert torch.allclose(decode(tiny_base, 0.5 * plain), picture, atol=1e-5)


def test_text_is_padded_to_the_encoders_length(tiny_base):
    texts = encode_text(tiny_base, ["camera pans left", ""])
    assert texts.shape == (2, 77, 24)
    assert torch.allclose(texts[:1], encode_text(tiny_base, ["camera pans left"]), atol=1e-5)
    assert not torch.allclose(texts[0], texts[1])


def test_long_text_is_cut_with_a_warning_that_names_the_rest(tiny_base):
    text = "camera pans left " * 40 + "zebra"
    with pytest.warns(UserWarning, match="cut off: .*zebra"):
        cut = encode_text(tiny_base, [text])
    assert cut.shape == (1, 77, 24)


def test_photo_tokens(tiny_base):
    photos = torch.rand(2, 3, 50, 80, generator=torch.Generator().manual_seed(0))
    tokens, grid = photo_tokens(tiny_base.image_encoder, photos, CONTENT)
    assert grid == (16, 16)
    assert tokens.shape == (2, 256, 24)
    smaller, grid = photo_tokens(
        tiny_base.image_encoder, photos, ContentShape("tiny", image_size=32, patch_size=4, token_width=24)
    )
    assert grid == (8, 8)
    assert smaller.shape == (2, 64, 24)


def test_image_encoder_that_is_missing_or_another(tiny_base):
    photo = torch.rand(1, 3, 64, 64)
    with pytest.raises(LivePhotoError, match=r"needs the image encoder facebook/dinov2-large.*--image-encoder"):
        photo_tokens(None, photo, ContentShape())
    with pytest.raises(LivePhotoError, match="give the folder of facebook/dinov2-large"):
        photo_tokens(tiny_base.image_encoder, photo, ContentShape())


def test_image_encoder_from_elsewhere(tiny_base_folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base_folder, bare, ignore=shutil.ignore_patterns("image_encoder"))
    assert load_base(bare).image_encoder is None
    assert load_base(bare, image_encoder=tiny_base_folder / "image_encoder").image_encoder is not None
    with pytest.raises(LivePhotoError, match=r"holds no config\.json.*DINOv2"):
        load_image_encoder(tmp_path)


def damage_weights(folder):
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def drop_a_tensor(folder):
    path = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    del tensors["conv_out.bias"]
    save_file(tensors, path)


def drop_a_text_tensor(folder):
    path = next((folder / "text_encoder").glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "final_layer_norm.weight" in name)]
    save_file(tensors, path)


def other_betas(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_schedule": "squaredcos_cap_v2"}))


DAMAGES = {
    "no vae": (lambda folder: shutil.rmtree(folder / "vae"), "lacks vae"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks tokenizer"),
    "empty tokenizer": (lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()], "cannot read a tokenizer"),
    "truncated unet": (damage_weights, "cannot load an SD1.5 UNet"),
    "unet lacks a tensor": (drop_a_tensor, r"conv_out\.bias"),
    "text encoder lacks a tensor": (drop_a_text_tensor, "lacks 1 tensors of a CLIP text encoder"),
    "no scheduler file": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "cannot read the noise schedule"),
    "other betas": (other_betas, "squaredcos_cap_v2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folder(tiny_base_folder, tmp_path, name):
    damage, message = DAMAGES[name]
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    damage(folder)
    with pytest.raises(LivePhotoError, match=message) as error:
        load_base(folder)
    assert "\n" not in str(error.value)


def test_no_base_at_all(tmp_path):
    with pytest.raises(LivePhotoError, match="there is no base model at"):
        load_base(tmp_path / "none")
    with pytest.raises(LivePhotoError, match="lacks vae, text_encoder, unet, scheduler, tokenizer"):
        load_base(tmp_path)


def test_shipped_configs_are_sd15s():
    unet = json.loads((SD15_CONFIGS / "unet" / "config.json").read_text())
    shape = BaseShape()
    assert tuple(unet["block_out_channels"]) == shape.block_channels
    assert (unet["in_channels"], unet["cross_attention_dim"]) == (shape.latent_channels, shape.context_width)
    vae = json.loads((SD15_CONFIGS / "vae" / "config.json").read_text())
    assert (vae["scaling_factor"], vae["latent_channels"]) == (0.18215, 4)
    scheduler = json.loads((SD15_CONFIGS / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["beta_schedule"], scheduler["beta_start"], scheduler["beta_end"]) == ("scaled_linear", 0.00085, 0.012)


# The original layout's names for diffusers' ones, in order; the numbers are those of four levels of two layers.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet_name(name, attends):
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(\w+)", name):
        return f"input_blocks.{3 * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(\w+)", name):
        return f"output_blocks.{3 * int(match[1]) + 2}.{2 if attends[3 - int(match[1])] else 1}.conv.{match[2]}"
    if match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", name):
        place = 3 * int(match[2]) + int(match[4]) + (match[1] == "down")
        side = "input" if match[1] == "down" else "output"
        name = f"{side}_blocks.{place}.{int(match[3] == 'attentions')}.{name[match.end() :]}"
    for theirs, ours in ENDS.items():
        if name.startswith(theirs + "."):
            name = ours + name.removeprefix(theirs)
    if "transformer_blocks" not in name:
        for theirs, ours in RESNET.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
    return name


def original_vae_name(name):
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{3 - int(m[1])}.block", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for theirs, ours in {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
    }.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name


@pytest.fixture(scope="module")
def single_file(tiny_base_folder, tmp_path_factory):
    """A checkpoint in the original layout with SD1.5's levels and few channels: (file, its configs, the models in it)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("single")
    configs = folder / "configs"
    shutil.copytree(SD15_CONFIGS, configs)
    torch.manual_seed(0)
    changes = {
        "unet": {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "cross_attention_dim": 24, "attention_head_dim": 2},
        "vae": {"block_out_channels": [4, 4, 4, 8], "norm_num_groups": 2},
    }
    for part, values in changes.items():
        path = configs / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    shutil.copy(tiny_base_folder / "text_encoder" / "config.json", configs / "text_encoder" / "config.json")
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(configs / "unet")))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(configs / "vae")))
    text_encoder = CLIPTextModel.from_pretrained(tiny_base_folder / "text_encoder")
    attends = [kind.startswith("CrossAttn") for kind in unet.config.down_block_types]
    tensors = {}
    for name, value in unet.state_dict().items():
        tensors[f"model.diffusion_model.{original_unet_name(name, attends)}"] = value
    for name, value in vae.state_dict().items():
        # the original's attention is made of 1x1 convolutions
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", original_vae_name(name))
        tensors[f"first_stage_model.{original_vae_name(name)}"] = value[..., None, None] if square else value
    for name, value in text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    tensors["model_ema.decay"] = torch.tensor(0.9)
    path = folder / "model.safetensors"
    save_file({name: value.clone().half() for name, value in tensors.items()}, path)
    return path, configs, (unet, vae, text_encoder)


def test_single_file(single_file, tiny_base_folder):
    path, configs, models = single_file
    base = load_single_file(path, tiny_base_folder / "tokenizer", configs)
    for model, original in zip((base.unet, base.vae, base.text_encoder), models, strict=True):
        own = model.state_dict()
        for name, value in original.state_dict().items():
            assert torch.equal(own[name], value.half().float()), name
    assert base.prediction_type == "epsilon"
    assert base.schedule == NoiseSchedule()


def test_single_file_as_ckpt(single_file, tiny_base_folder, tmp_path):
    path, configs, models = single_file
    checkpoint = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(path), "global_step": 1}, checkpoint)
    base = load_single_file(checkpoint, tiny_base_folder / "tokenizer", configs)
    assert torch.equal(base.unet.conv_in.weight, models[0].conv_in.weight.half().float())


def test_a_photo_is_animated_on_a_single_file(single_file, tiny_base_folder, tmp_path, monkeypatch):
    path, configs, (unet, *_) = single_file
    # the ones that ship are SD1.5's own, for gigabytes of weights
    monkeypatch.setattr(load_single_file, "__defaults__", (configs,))
    torch.manual_seed(0)
    config = AdapterConfig(
        base=base_shape(unet),
        motion=MotionShape(heads=2, attention_blocks=1, max_frames=16),
        content=CONTENT,
        reweight=ReweightShape(layers=1, heads=2),
        frames=2,
        size=64,
        ssim_thresholds=tuple(0.95 - 0.05 * n for n in range(9)),
    )
    save_adapter(LivePhotoAdapter(config), tmp_path / "adapter.safetensors")
    write_picture(torch.rand(3, 80, 64), tmp_path / "photo.png")
    out = tmp_path / "clip.webp"
    files = {"base": path, "model": tmp_path / "adapter.safetensors", "out": out}
    files |= {name.replace("_", "-"): tiny_base_folder / name for name in ("tokenizer", "image_encoder")}
    options = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    assert main(["animate", str(tmp_path / "photo.png"), "the camera pans left", "--steps", "2", *options]) == 0
    assert read_clip(out).frames.shape == (2, 3, 64, 64)


def test_v_prediction_in_a_single_file(single_file, tiny_base_folder, tmp_path):
    """Models of v-prediction carry an empty tensor of this name."""
    path, configs, _ = single_file
    marked = tmp_path / "v.safetensors"
    save_file({**load_file(path), "v_pred": torch.zeros(0)}, marked)
    assert load_single_file(marked, tiny_base_folder / "tokenizer", configs).prediction_type == "v_prediction"


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(name)}


def misshapen(name):
    return lambda tensors: {**tensors, name: tensors[name][:-1].clone()}


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
SINGLE_FILE_DAMAGES = {
    "a LoRA": (lambda tensors: {"lora_unet_x.lora_up.weight": torch.zeros(1)}, "not a single-file SD1.5 checkpoint"),
    "SDXL": (lambda tensors: {**tensors, "conditioner.embedders.0.x": torch.zeros(1)}, "not a single-file SD1.5"),
    "inpainting": (
        lambda tensors: {**tensors, f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)},
        "takes 9 channels",
    ),
    "SD2": (
        lambda t: {**t, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 1024)},
        "cross-attention width 24.*has 1024",
    ),
    "no VAE": (without(VAE), "no whole VAE|VAE in .* lacks"),
    "no text encoder": (without(TEXT), "text encoder in .* lacks"),
    "UNet lacks a tensor": (without(f"{UNET}out.2.bias"), "UNet"),
    "UNet misshapen": (misshapen(f"{UNET}out.2.weight"), "no whole UNet"),
    "text misshapen": (misshapen(f"{TEXT}text_model.final_layer_norm.weight"), "other shapes"),
}


@pytest.mark.parametrize("name", SINGLE_FILE_DAMAGES)
def test_wrong_single_file(single_file, tiny_base_folder, tmp_path, name):
    change, message = SINGLE_FILE_DAMAGES[name]
    path, configs, _ = single_file
    wrong = tmp_path / "wrong.safetensors"
    save_file(change(load_file(path)), wrong)
    with pytest.raises(LivePhotoError, match=message) as error:
        load_single_file(wrong, tiny_base_folder / "tokenizer", configs)
    assert "\n" not in str(error.value)
    assert "wrong.safetensors" in str(error.value)


def test_single_file_needs_a_tokenizer(single_file):
    with pytest.raises(LivePhotoError, match=r"holds no tokenizer.*--tokenizer DIR"):
        load_base(single_file[0])
    with pytest.raises(LivePhotoError, match="there is no tokenizer folder"):
        load_base(single_file[0], tokenizer="none")


def test_files_that_hold_no_tensors(tmp_path):
    for name, content in (("text.pt", b"hello world"), ("zeros.bin", bytes(100))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LivePhotoError, match=name):
            read_tensors(tmp_path / name)
    torch.save({"state_dict": torch.zeros(3)}, tmp_path / "one.pt")
    assert read_tensors(tmp_path / "one.pt") == {}


def test_truncated_single_file_and_code_in_a_ckpt(single_file, tiny_base_folder, tmp_path):
    tokenizer = tiny_base_folder / "tokenizer"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(single_file[0].read_bytes()[:5000])
    with pytest.raises(LivePhotoError, match="the file is damaged"):
        load_base(cut, tokenizer=tokenizer)
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "call": pytest.fail}, evil)
    with pytest.raises(LivePhotoError, match="code in checkpoints is never run"):
        load_base(evil, tokenizer=tokenizer)
