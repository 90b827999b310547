"""LoRA files in the namings that are about."""

import pytest
import torch
from safetensors.torch import save_file

from livephoto_core.errors import LivePhotoError
from livephoto_core.lora import apply_lora

UNET_LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "mid_block.attentions.0.proj_in",
)
TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def matrices(tiny_base):
    """{layer: (down, up)} of rank 2 for three layers of the UNet and one of the text encoder."""
    torch.manual_seed(0)
    found = {}
    for name, weight in weights(tiny_base).items():
        found[name] = torch.randn(2, *weight.shape[1:]), torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2))
    return found


def weights(base):
    text = base.text_encoder.state_dict()
    named = {name: base.unet.get_submodule(name).weight for name in UNET_LAYERS}
    prefix = "text_model." if any(name.startswith("text_model.") for name in text) else ""
    named[TEXT_LAYER] = base.text_encoder.get_submodule(prefix + TEXT_LAYER).weight
    return named


def kohya(matrices):
    tensors = {}
    for layer, (down, up) in matrices.items():
        owner = "lora_te_text_model_" if layer == TEXT_LAYER else "lora_unet_"
        name = owner + layer.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    return tensors, 0.5


def peft(matrices):
    tensors = {}
    for layer, (down, up) in matrices.items():
        name = f"text_encoder.text_model.{layer}" if layer == TEXT_LAYER else f"unet.{layer}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors, 1.0


def older_diffusers(matrices):
    tensors = {}
    for layer, (down, up) in matrices.items():
        name = f"unet.{layer}.lora"
        if layer == TEXT_LAYER:
            name = "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"
        elif "attn" in layer:
            block, _, last = layer.removesuffix(".0").rpartition(".")
            name = f"unet.{block}.processor.{last}_lora"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return tensors, 1.0


@pytest.mark.parametrize("naming", [kohya, peft, older_diffusers])
def test_every_layer_gets_its_product(tiny_base, matrices, naming, tmp_path):
    tensors, scale = naming(matrices)
    save_file(tensors, tmp_path / "lora.safetensors")
    before = {name: weight.clone() for name, weight in weights(tiny_base).items()}
    assert apply_lora(tiny_base, tmp_path / "lora.safetensors", 0.7) == 4
    for name, weight in weights(tiny_base).items():
        down, up = matrices[name]
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        assert torch.allclose(weight, before[name] + 0.7 * scale * product, atol=1e-5), name


def test_agrees_with_diffusers_own_loader(tiny_base, tiny_base_folder, matrices, tmp_path):
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    from livephoto_core.base import load_base

    tensors, _ = kohya({name: pair for name, pair in matrices.items() if name != TEXT_LAYER})
    save_file(tensors, tmp_path / "lora.safetensors")
    apply_lora(tiny_base, tmp_path / "lora.safetensors")
    unet = load_base(tiny_base_folder).unet
    converted, alphas = StableDiffusionPipeline.lora_state_dict(tensors)
    StableDiffusionPipeline.load_lora_into_unet(converted, alphas, unet)
    unet.fuse_lora()
    unet.unload_lora()
    for name, value in unet.state_dict().items():
        assert torch.allclose(value, tiny_base.unet.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": 1}, {"lora_alpha": 8, "use_rslora": True}, {"lora_alpha": 2, "alpha_pattern": {"proj_in": 6}}]
)
def test_alpha_as_diffusers_keeps_it(tiny_base, tiny_base_folder, matrices, settings, tmp_path):
    """Beside the tensors, in the file's metadata."""
    peft_package = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    from livephoto_core.base import load_base

    tensors, _ = peft({name: pair for name, pair in matrices.items() if name != TEXT_LAYER})
    config = peft_package.LoraConfig(r=2, target_modules=list(UNET_LAYERS), **settings)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers={name.removeprefix("unet."): value for name, value in tensors.items()},
        unet_lora_adapter_metadata=config.to_dict(),
    )
    [path] = tmp_path.iterdir()
    assert apply_lora(tiny_base, path) == len(UNET_LAYERS)
    unet = load_base(tiny_base_folder).unet
    converted, alphas, metadata = StableDiffusionPipeline.lora_state_dict(str(tmp_path), return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(converted, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    unet.unload_lora()
    for name, value in unet.state_dict().items():
        assert torch.allclose(value, tiny_base.unet.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize("text", ["{", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": {"(": 1}}'])
def test_settings_that_cannot_be_read(tiny_base, matrices, text, tmp_path):
    tensors, _ = peft(matrices)
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(LivePhotoError, match=r"the settings in .*get the file again"):
        apply_lora(tiny_base, tmp_path / "lora.safetensors")


WRONG = {
    "no layer": ({"lora_unet_up_blocks_9.lora_up.weight": (4, 2), "lora_unet_up_blocks_9.lora_down.weight": (2, 4)}, "SD1.5"),
    "SDXL": ({"lora_te1_x.lora_up.weight": (4, 2), "lora_te1_x.lora_down.weight": (2, 4)}, "SDXL"),
    "half a pair": ({f"unet.{UNET_LAYERS[0]}.lora_A.weight": (2, 24)}, "lacks the up matrix"),
    "misshapen": (
        {f"unet.{UNET_LAYERS[0]}.lora_A.weight": (2, 99), f"unet.{UNET_LAYERS[0]}.lora_B.weight": (16, 2)},
        "is 16x99.*this base has 16 channels.*SD1.5 320: give --base",
    ),
    "LoHa": ({"lora_unet_x.hada_w1_a": (2, 2)}, "hada_w1_a.*no part of a plain LoRA"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_change_nothing(tiny_base, matrices, tmp_path, name):
    shapes, message = WRONG[name]
    good, _ = peft(matrices)
    save_file({**good, **{key: torch.zeros(shape) for key, shape in shapes.items()}}, tmp_path / "lora.safetensors")
    if name in ("half a pair", "misshapen"):
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "lora.safetensors")
    before = {key: value.clone() for key, value in tiny_base.unet.state_dict().items()}
    with pytest.raises(LivePhotoError, match=message):
        apply_lora(tiny_base, tmp_path / "lora.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in tiny_base.unet.state_dict().items())


def test_missing_and_damaged_files(tiny_base, tmp_path):
    with pytest.raises(LivePhotoError, match="there is no LoRA file"):
        apply_lora(tiny_base, tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(LivePhotoError, match="the file is damaged"):
        apply_lora(tiny_base, tmp_path / "cut.safetensors")
    with pytest.raises(LivePhotoError, match="strength must be a number"):
        apply_lora(tiny_base, tmp_path / "cut.safetensors", float("nan"))
