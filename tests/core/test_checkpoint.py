import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from livephoto_core.checkpoint import expected_shapes, load_adapter, read_config, read_metadata, save_adapter
from livephoto_core.config import AdapterConfig, to_json
from livephoto_core.errors import LivePhotoError

NAME = "reweight.to_frames.weight"


@pytest.fixture
def path(tmp_path, tiny_adapter):
    save_adapter(tiny_adapter, tmp_path / "live.safetensors", {"trained on": "ölbilder"}, dtype=torch.float32)
    return tmp_path / "live.safetensors"


def rewritten(path, change, metadata=None):
    """The file with its tensors changed, and its metadata if given."""
    with safe_open(path, "pt") as file:
        kept = file.metadata()
    save_file(change(load_file(path)), path, kept if metadata is None else metadata)
    return path


def refusal(path, call=load_adapter):
    with pytest.raises(LivePhotoError) as raised:
        call(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip_is_exact_in_float32(path, tiny_adapter):
    loaded = load_adapter(path)
    assert loaded.config == tiny_adapter.config
    before, after = tiny_adapter.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_same_adapter_same_bytes(path, tiny_adapter):
    again = path.with_name("again.safetensors")
    save_adapter(tiny_adapter, again, {"trained on": "ölbilder"}, dtype=torch.float32)
    assert again.read_bytes() == path.read_bytes()


def test_half_precision_is_the_default_and_keeps_the_position_tables(tmp_path, tiny_adapter):
    path = tmp_path / "half.safetensors"
    save_adapter(tiny_adapter, path)
    stored = load_file(path)
    assert {tensor.dtype for name, tensor in stored.items() if not name.endswith(".pe")} == {torch.float16}
    assert all(torch.equal(stored[name], tiny_adapter.state_dict()[name]) for name in stored if name.endswith(".pe"))
    assert {parameter.dtype for parameter in load_adapter(path).parameters()} == {torch.float32}
    as_stored = load_adapter(path, dtype=None)
    assert {parameter.dtype for parameter in as_stored.parameters()} == {torch.float16}
    error = max((a - b).abs().max() for a, b in zip(load_adapter(path).parameters(), tiny_adapter.parameters(), strict=True))
    assert error < 2e-3


def test_saving_leaves_the_adapter_as_it_is(tmp_path, tiny_adapter):
    save_adapter(tiny_adapter, tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in tiny_adapter.parameters()} == {torch.float32}


def test_loaded_weights_do_not_hang_on_the_file(path):
    loaded = load_adapter(path)
    before = loaded.stem.conv.weight.clone()
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded.stem.conv.weight, before)


def test_config_and_metadata_without_the_tensors(path, tiny_config):
    assert read_config(path) == tiny_config
    assert read_metadata(path) == {"trained on": "ölbilder"}


def test_others_may_read_a_checkpoint_as_any_new_file(path, tmp_path):
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_config_in_the_metadata_is_json(path, tiny_config):
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["livephoto"])["base"]["block_channels"] == list(tiny_config.base.block_channels)


def test_extra_metadata_cannot_replace_the_config(tmp_path, tiny_adapter):
    save_adapter(tiny_adapter, tmp_path / "a.safetensors", {"livephoto": "{}"})
    assert read_config(tmp_path / "a.safetensors") == tiny_adapter.config


class CountingLinear(nn.Linear):
    made = 0

    def __init__(self, *args, **kwargs):
        type(self).made += 1
        super().__init__(*args, **kwargs)


class Operations:
    """Layers of another make, as an inference framework passes them in."""

    Linear = CountingLinear
    LayerNorm, GroupNorm, Conv2d = nn.LayerNorm, nn.GroupNorm, nn.Conv2d


def test_layers_come_from_the_operations(path):
    loaded = load_adapter(path, Operations)
    plain = {name for name, module in loaded.named_modules() if type(module) is nn.Linear}
    assert not plain
    assert CountingLinear.made == sum(isinstance(module, CountingLinear) for module in loaded.modules())


def test_expected_shapes_of_sd15_take_no_memory():
    shapes = expected_shapes(AdapterConfig())
    assert shapes["stem.conv.weight"] == (320, 6, 3, 3)
    assert shapes["content_proj.weight"] == (768, 1024)
    assert shapes["content.mid_block.attentions.0.to_q.weight"] == (512, 1280)
    assert shapes["reweight.to_frames.weight"] == (16, 768)


def test_missing_tensor(path):
    message = refusal(rewritten(path, lambda tensors: {k: v for k, v in tensors.items() if k != NAME}))
    assert f"1 missing: {NAME} [4, 24]" in message
    assert "get it again" in message


def test_unexpected_tensor(path):
    assert "1 unexpected: extra.weight [3]" in refusal(rewritten(path, lambda t: {**t, "extra.weight": torch.zeros(3)}))


def test_misshapen_tensor(path):
    message = refusal(rewritten(path, lambda tensors: {**tensors, NAME: torch.zeros(5, 24)}))
    assert f"1 misshapen: {NAME} [5, 24], expected [4, 24]" in message


def test_tensor_of_whole_numbers(path):
    message = refusal(rewritten(path, lambda tensors: {**tensors, NAME: torch.zeros(4, 24, dtype=torch.int64)}))
    assert f"not floating point: {NAME} I64" in message


def test_many_wrong_tensors_stay_one_short_line(path):
    message = refusal(rewritten(path, lambda tensors: {NAME: tensors[NAME]}))
    assert "more; the file is damaged" in message
    assert len(message) < 500


def test_position_tables_are_part_of_the_file(path):
    table = next(name for name in load_file(path) if name.endswith(".pe"))
    assert f"1 missing: {table} [1, 8, " in refusal(rewritten(path, lambda t: {k: v for k, v in t.items() if k != table}))


def test_nothing_is_built_from_a_wrong_file(path):
    class Never:
        """Operations without a single layer."""

    rewritten(path, lambda tensors: {NAME: tensors[NAME]})
    assert "missing" in refusal(path, lambda path: load_adapter(path, Never))


@pytest.mark.parametrize("kept", [0, 5, 40, 2000, -1])
def test_truncated_file(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    message = refusal(path)
    assert "incomplete" in message
    assert "get it again" in message


@pytest.mark.parametrize("text", ["hello, this is some text and no checkpoint", "PK\x03\x04 a zip file, as .ckpt files are"])
def test_not_a_safetensors_file(tmp_path, text):
    path = tmp_path / "a.safetensors"
    path.write_text(text)
    assert "is not a safetensors file" in refusal(path)


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x", "first_stage_model.x"], "a Stable Diffusion v1"),
        (["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.x"], "a Stable Diffusion XL"),
        (
            ["blocks.0.self_attn.q.weight", "patch_embedding.weight", "text_reweight.cross_attn_0.q.weight"],
            "a LivePhoto-Wan2.1 base file: in ComfyUI put it in models/diffusion_models and use Load LivePhoto-Wan2.1",
        ),
        (["blocks.0.self_attn.q.weight", "patch_embedding.weight"], "a Wan video model: give a file that LivePhoto's"),
        (["blocks.0.self_attn.q.lora_A.weight", "text_reweight.cross_attn_0.q.lora_A.weight"], "a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.weight", "diffusion_model.patch_embedding.weight"], "a Wan video model"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "a LoRA"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion module"),
        (["conv_in.weight", "down_blocks.0.resnets.0.x", "time_embedding.linear_1.weight"], "a diffusers UNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE"),
        (["embeddings.patch_embeddings.projection.weight"], "an image encoder"),
    ],
)
def test_file_of_another_kind_is_recognised(tmp_path, names, kind):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2) for name in names}, path)
    for call in (load_adapter, read_config):
        assert f"is not a LivePhoto checkpoint, it looks like {kind}" in refusal(path, call)


@pytest.mark.parametrize("call", [load_adapter, read_config])
def test_adapter_that_has_lost_its_config_is_named(path, call):
    rewritten(path, lambda tensors: tensors, {})
    assert "holds a LivePhoto adapter without its config, as tools that drop metadata leave it: give the" in refusal(path, call)


def test_unknown_file_is_not_guessed_at(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "is not a LivePhoto checkpoint: give" in refusal(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"family": "wan21", "levels": 6}, "of the family 'wan21'"),
        ({"format_version": 9}, "format version is 9"),
        ({"frames": 1}, "frames is 1"),
        ({"frames": "many"}, "frames is 'many'"),
    ],
)
def test_config_that_cannot_be(path, tiny_config, change, cause):
    metadata = {"livephoto": json.dumps({**json.loads(to_json(tiny_config)), **change})}
    rewritten(path, lambda tensors: tensors, metadata)
    assert cause in refusal(path)
    assert cause in refusal(path, read_config)


def test_damaged_config(path):
    assert "not JSON" in refusal(rewritten(path, lambda tensors: tensors, {"livephoto": "{"}))


def test_config_of_another_size(path, tiny_config):
    wider = dataclasses.replace(tiny_config, base=dataclasses.replace(tiny_config.base, latent_channels=8))
    message = refusal(rewritten(path, lambda tensors: tensors, {"livephoto": to_json(wider)}))
    assert "1 misshapen: stem.conv.weight [16, 6, 3, 3], expected [16, 10, 3, 3]" in message


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_half_precision_cannot_hold(tmp_path, tiny_adapter, value):
    with torch.no_grad():
        tiny_adapter.content_proj.bias[0] = value
    with pytest.raises(LivePhotoError, match=r"content_proj.bias has values that are not finite in torch.float16: save as"):
        save_adapter(tiny_adapter, tmp_path / "a.safetensors")
    assert not os.listdir(tmp_path)


def test_unwritable_place(tmp_path, tiny_adapter):
    with pytest.raises(LivePhotoError, match="create the folder first"):
        save_adapter(tiny_adapter, tmp_path / "none" / "a.safetensors")


FULL_DISK = """
import resource, signal, sys
from livephoto_core.checkpoint import load_adapter, save_adapter
from livephoto_core.errors import LivePhotoError
adapter = load_adapter(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_adapter(adapter, sys.argv[2])
except LivePhotoError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_full_disk_leaves_the_old_file(path):
    target = path.with_name("target.safetensors")
    target.write_text("old")
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, path, target], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"cannot write {target}: File too large")
    assert target.read_text() == "old"
    assert sorted(os.listdir(path.parent)) == ["live.safetensors", "target.safetensors"]


class LateLinear(nn.Linear):
    """As newer ComfyUI's: without parameters before there are weights to load."""

    def __init__(self, inputs, outputs, bias=True):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.weight, self.bias = inputs, outputs, None, None

    def _load_from_state_dict(self, tensors, prefix, *_):
        for name in ("weight", "bias"):
            if prefix + name in tensors:
                setattr(self, name, nn.Parameter(tensors[prefix + name], requires_grad=False))


class LateOperations:
    Linear, Conv2d, GroupNorm, LayerNorm = LateLinear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm


def test_layers_that_have_no_parameters_before_they_are_loaded(path):
    plain, late = load_adapter(path), load_adapter(path, LateOperations)
    assert any(isinstance(module, LateLinear) for module in late.modules())
    expected, found = plain.state_dict(), late.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
