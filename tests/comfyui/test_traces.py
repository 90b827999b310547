"""LivePhoto leaves the base MODEL and ComfyUI as they were: after samplings, after errors, and by its import."""

import pytest
import torch

from livephoto_core.checkpoint import save_adapter
from livephoto_core.config import AdapterConfig, BaseShape, ContentShape, MotionShape, ReweightShape
from livephoto_core.model.adapter import LivePhotoAdapter

NODES = (
    "LivePhotoModelLoader",
    "LivePhotoDemoLoader",
    "LivePhotoReferenceEncode",
    "LivePhotoPriorInversion",
    "LivePhotoTextReweight",
    "LivePhotoIntensity",
    "LivePhotoApply",
    "LivePhotoPriorNoise",
    "LivePhotoSampler",
    "LivePhotoContextWindows",
    "LivePhotoMeasureMotion",
)
HEAVY = {"diffusers", "skimage", "accelerate", "peft", "matplotlib", "webdataset", "tensorboard", "sklearn", "livephoto_core"}


def save_tiny_adapter(path):
    """A checkpoint for `tiny_model` of inside/kit.py, with weights that move something."""
    config = AdapterConfig(
        base=BaseShape(block_channels=(32, 64), layers_per_block=1, block_attention=(True, False), context_width=24),
        motion=MotionShape(heads=4, max_frames=8),
        content=ContentShape("tiny", image_size=28, token_width=12, width=20, heads=2, head_width=8),
        reweight=ReweightShape(layers=1, heads=4),
        frames=4,
        size=64,
    )
    torch.manual_seed(1)
    adapter = LivePhotoAdapter(config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(adapter, path)


@pytest.fixture(scope="module")
def results(inside):
    return inside("traces", prepare=lambda base: save_tiny_adapter(base / "models" / "livephoto" / "tiny.safetensors"))


@pytest.fixture(scope="module")
def plain(inside):
    return inside("plain", prepare=lambda base: (base / "models" / "livephoto" / "some.safetensors").touch())


def test_base_gives_what_it_gives_in_a_comfyui_without_the_pack(results, plain):
    found, without = results("tiny"), plain("sampled")["latents"]
    for name in ("before", "applied", "after"):
        assert torch.equal(found[name], without), name
    assert not torch.allclose(found["patched"], without, atol=1e-2)
    assert found["clean"]


def test_base_gives_the_same_after_sampling(results):
    found = results("base_again")
    assert torch.equal(found["before"], found["after"])
    assert found["clean"]
    assert found["same weights"]


def test_state_dict_is_the_bases_while_in_use(results):
    found = results("names_while_in_use")
    assert found["same"] == [True, True]
    assert torch.equal(found["looked at"], found["left alone"])


def test_clones_copy_no_weights(results):
    assert results("clones") == {"held": [True, True], "more": 0}


def test_another_model_in_between_changes_nothing(results):
    found = results("another_model_in_between")
    assert torch.equal(found["first"], found["second"])
    assert not torch.allclose(found["first"], found["other"], atol=1e-2)


def test_clone_that_goes_while_in_use_changes_nothing(results):
    found = results("clone_dropped_while_in_use")
    assert torch.equal(found["before"], found["after"])
    assert torch.equal(found["base"], found["baseline"])
    assert found["clean"]


def test_cancelling_changes_nothing(results):
    found = results("cancelled")
    assert found["stopped"]
    assert torch.equal(found["base"], found["baseline"])
    assert torch.equal(found["before"], found["after"])


def test_photo_is_read_once_a_sampling(results):
    found = results("photo_keys_and_values")
    assert found["counts"] == [1] * 6
    assert all(torch.equal(latents, found["latents"][0]) for latents in found["latents"])


def test_adapter_is_in_comfyuis_memory_management(results):
    found = results("memory")
    assert found["during"] == [1]
    assert found["after"] == 1
    assert found["unloaded"] == 0
    assert found["hooks"] == 0


def test_a_partly_loaded_adapter_gives_the_same(results):
    found = results("partly_loaded")
    assert found["lowvram"] == [True, True] and 0 < found["share"] < 0.5
    assert found["same"] and not found["loose"]


def test_dropped_adapter_is_freed(results):
    assert results("dropped") == {"gone": True, "hooks": 0}


REFUSALS = {
    "another_size": "the latent is 8x8, the reference photo's latent 16x16: give both the same size",
    "one_frame": "the latent has 1 frame, a clip at least 2: set the batch size",
    "too_many_frames": "the LivePhoto checkpoint takes {most} at once: make its batch {most} or less, or put LivePhoto Context",
    "frames_of_half_a_photo": "the latent has 5 frames for 2 photos: make its batch a multiple of the photos",
    "area": "conditioning for an area cuts the latent and does not go with LivePhoto",
    "applied_twice": "this MODEL already went through Apply LivePhoto: connect the MODEL from before it",
    "sdxl": "LivePhoto needs an SD1.5 model (cross-attention width 768); this one has 2048: load an SD1.5 checkpoint",
    "wan": "LivePhoto needs an SD1.5 model; this one is WAN21: load an SD1.5 checkpoint",
    "text_of_one_long_clip_for_two": "the positive text has rows for 8 frames, the clip has 4: set the frames of Re-weight",
    "text_for_other_frames": "the positive text has rows for 3 frames, the clip has 4: set the frames of Re-weight",
    "text_of_another_width": "the negative text is 768 wide, the LivePhoto checkpoint needs 96: encode it with the MODEL's CLIP",
    "photo_of_a_wider_encoder": "the photo's tokens are 1024 wide, the LivePhoto checkpoint needs 96: encode the photo with demo",
    "photo_of_other_patches": "has 1369 patch tokens (37x37), the LivePhoto checkpoint needs 256 (16x16): encode the photo",
    "photo_of_another_vae": "the reference latent has 4 channels, the LivePhoto checkpoint's base has 12: encode the photo",
    "inversion_under_a_text_a_frame": "the empty text has rows for 4 frames, inversion takes one row: connect CLIP Text Encode",
    "inversion_under_a_text_of_another_width": "the empty text is 768 wide, the MODEL takes 96: encode it with the MODEL's CLIP",
    "inversion_of_another_vaes_photo": "the reference latent has 4 channels, the MODEL takes 12: encode the photo with its VAE",
    "another_base": "trained on a UNet with latent_channels 12; this one has 4: load the base model that belongs to",
}


def test_rows_of_a_text_are_for_the_frames_of_each_clip(results):
    found = results("text_a_frame_of_each_clip")["latents"]
    assert torch.equal(found, results("text_a_frame_of_all_clips")["latents"])
    assert not torch.allclose(*found.chunk(2), atol=1e-2)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(results, demo, name):
    found = results(name)
    print(found["message"])
    assert found["kind"] == "LivePhotoError"
    assert REFUSALS[name].format(most=demo[1].config.motion.max_frames) in found["message"]
    assert "\n" not in found["message"]
    assert found["same"]


def test_import_is_light(plain):
    found = plain("imports")
    print(f"{found['seconds']:.2f} s, {found['packages']}")
    assert found["seconds"] < 1
    assert HEAVY.isdisjoint(found["packages"])
    assert found["transformers"] == []


def test_import_leaves_comfyuis_modules_alone(plain):
    found = plain("imports")
    assert found["same path"]
    assert found["nodes is ComfyUI's"]


def test_import_brings_nodes_and_model_folder(plain):
    found = plain("imports")
    assert set(NODES) <= set(found["ids"])
    assert found["folder"] == ["some.safetensors"]
