"""SD1.5 and the adapter at their real size, random weights: a single-file checkpoint gives the same in both hosts.

Needs 10 GB of memory and 4 GB of disk, which are freed again.
"""

import gc
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from livephoto_core.base import SD15_CONFIGS, encode_photo, encode_text, load_single_file
from livephoto_core.checkpoint import CONFIG_KEY, load_adapter, save_tensors
from livephoto_core.config import AdapterConfig, to_json
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.motion import sinusoids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DRAW = torch.randn(1_000_003, generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module")
def original_names():
    """How tests/core names diffusers' tensors in the original layout."""
    spec = importlib.util.spec_from_file_location("core_test_base", Path(__file__).parents[1] / "core" / "test_base.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.original_unet_name, module.original_vae_name


def random_weights(model):
    """{name: float16} for each parameter of a model without weights; about as large as trained ones, no two alike.

    Pieces of one draw, as drawing a billion numbers would take most of the test's time.
    """
    found = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        start = number * 7919 % len(DRAW)
        values = torch.cat([DRAW[start:], DRAW[:start]]).repeat(-(-parameter.numel() // len(DRAW)))[: parameter.numel()]
        if parameter.ndim > 1:
            values = values * (parameter.numel() // len(parameter)) ** -0.5
        else:
            # of these the weights are all norms'
            values = float(name.endswith("weight")) + 0.1 * values
        found[name] = values.view(parameter.shape).half()
    return found


def save_checkpoint(path, original_unet_name, original_vae_name):
    """A single file of SD1.5's layout."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(SD15_CONFIGS / "unet")))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(SD15_CONFIGS / "vae")))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIGS / "text_encoder"))
    attends = [kind.startswith("CrossAttn") for kind in unet.config.down_block_types]
    tensors = {}
    for name, value in random_weights(unet).items():
        tensors[f"model.diffusion_model.{original_unet_name(name, attends)}"] = value
    for name, value in random_weights(vae).items():
        name = original_vae_name(name)
        # the original's attention is made of 1x1 convolutions
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[f"first_stage_model.{name}"] = value[..., None, None] if square else value
    for name, value in random_weights(text_encoder).items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file(tensors, path)


def save_full_adapter(path):
    """A checkpoint of the default config: no part is silent as it is before training."""
    config = AdapterConfig()
    with torch.device("meta"):
        adapter = LivePhotoAdapter(config)
    tensors = random_weights(adapter)
    for name, table in adapter.named_buffers():
        assert name.endswith(".pe")
        tensors[name] = sinusoids(*table.shape[1:])
    save_tensors(tensors, path, {CONFIG_KEY: to_json(config)})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(checkpoint, adapter), to be written; deleted afterwards."""
    folder = tmp_path_factory.mktemp("sd15")
    paths = folder / "sd15.safetensors", folder / "full.safetensors"
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def found(inside, files, original_names):
    checkpoint, adapter = files
    save_checkpoint(checkpoint, *original_names)
    save_full_adapter(adapter)
    gc.collect()

    def prepare(base):
        for path, folder in ((checkpoint, "checkpoints"), (adapter, "livephoto")):
            (base / "models" / folder / path.name).hardlink_to(path)

    return inside("sd15", "--force-fp32", prepare=prepare, timeout=900)("checkpoint")


@pytest.fixture(scope="module")
def base(comfyui, files, found):
    return load_single_file(files[0], comfyui.path / "comfy" / "sd1_tokenizer")


def test_comfyui_takes_it_for_sd15(found):
    assert (found["kind"], found["prediction"], found["dtype"]) == ("BaseModel", "EPS", "torch.float32")


@torch.no_grad()
def test_same_text_and_latent(found, base):
    assert torch.allclose(encode_text(base, [found["prompt"]]), found["text"], atol=1e-4)
    assert torch.allclose(encode_photo(base, found["photo"]), found["latent"], atol=1e-4)


def test_same_output_of_the_unet(found, base, files, replay):
    assert found["chunks"] == [[1, 0]]
    assert found["call0/out"].std() > 0.1
    difference = replay(found, base.unet, load_adapter(files[1]))
    print(f"sd15: {difference:.1e}")
    assert difference < 1e-4
    assert replay(found, base.unet, None) > 0.01
