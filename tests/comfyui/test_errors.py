"""What users do wrong, over HTTP: the right node says in one line what to do, and the next good run is as before."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from livephoto_core.checkpoint import save_adapter
from livephoto_core.config import AdapterConfig, ContentShape
from livephoto_core.model.adapter import LivePhotoAdapter

KSAMPLER = {
    "model": ["apply", 0],
    "seed": 0,
    "steps": 2,
    "cfg": 2.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "positive": ["text", 0],
    "negative": ["empty", 0],
    "latent_image": ["latent", 0],
    "denoise": 1.0,
}
WINDOWS = {"model": ["apply", 0], "length": 16, "overlap": 4, "schedule": "standard_static", "loop": False}
APPLY_AGAIN = {
    "model": ["apply", 0],
    "livephoto_model": ["demo", 4],
    "reference": ["invert", 0],
    "motion": ["motion", 0],
    "image_strength": 1.0,
    "motion_strength": 1.0,
}


def ksampler(frames, pixels=128):
    """KSampler on ComfyUI's own empty latent, which has 8 pixels a latent pixel."""
    latent = ("EmptyLatentImage", {"width": pixels, "height": pixels, "batch_size": frames})
    return {"latent": latent, "sample": ("KSampler", KSAMPLER)}


def checkpoint(name):
    """The LivePhoto checkpoint out of a file."""
    load = ("LivePhotoModelLoader", {"model_name": name})
    return {"load": load, "apply": {"livephoto_model": ["load", 0]}}


# name: (changes to the graph of a clip, the node that complains, what it says)
ERRORS = {
    "wider_encoder": (
        checkpoint("wide.safetensors"),
        "apply",
        "the photo's tokens are 96 wide, the LivePhoto checkpoint needs 1024: encode the photo with facebook/dinov2-large",
    ),
    "encoder_of_other_patches": (
        checkpoint("patches.safetensors"),
        "apply",
        "the photo has 256 patch tokens (16x16), the LivePhoto checkpoint needs 1369 (37x37): encode the photo with facebook/",
    ),
    "another_size": (ksampler(4, 64), "sample", "the latent is 8x8, the reference photo's latent 16x16: give both the same size"),
    "one_frame": (ksampler(1), "sample", "the latent has 1 frame, a clip at least 2: set the batch size"),
    "too_many_frames": (
        ksampler(33),
        "sample",
        "the latent has 33 frames, the LivePhoto checkpoint takes 32 at once: make its batch",
    ),
    "level_that_is_no_number": (
        {"motion": {"level": math.nan}},
        "motion",
        "motion intensity must be a number from 1 to 10, got nan",
    ),
    "strength_that_is_no_number": (
        {"apply": {"motion_strength": math.nan}},
        "apply",
        "motion_strength is nan: give a number",
    ),
    "text_strength_that_is_no_number": ({"positive": {"strength": math.nan}}, "positive", "strength is nan: give a number"),
    "cfg_that_is_no_number": ({"sample": {"cfg": math.nan}}, "sample", "cfg is nan: give a number"),
    "missing_file": (
        checkpoint("none.safetensors"),
        "load",
        "models/livephoto has no file none.safetensors: put the checkpoint there",
    ),
    "corrupt_file": (checkpoint("cut.safetensors"), "load", "cut.safetensors is incomplete or damaged"),
    "wan_file": (
        checkpoint("wan.safetensors"),
        "load",
        "wan.safetensors is not a LivePhoto checkpoint, it looks like a Wan video model",
    ),
    "text_for_other_frames": (
        {"positive": {"frames": 16}},
        "sample",
        "the positive text has rows for 16 frames, the clip has 4: set the frames of Re-weight Motion Text to 4",
    ),
    "applied_twice": (
        {"twice": ("LivePhotoApply", APPLY_AGAIN), "sample": {"model": ["twice", 0]}},
        "twice",
        "this MODEL already went through Apply LivePhoto: connect the MODEL from before it",
    ),
    "inversion_of_the_patched_model": (
        {"apply": {"reference": ["reference", 0]}, "invert": {"model": ["apply", 0]}},
        "invert",
        "Invert Reference Latent needs the base MODEL: connect the MODEL from before Apply LivePhoto",
    ),
    "inversion_under_a_reweighted_text": (
        {"invert": {"empty_text": ["negative", 0]}},
        "invert",
        "the empty text has rows for 4 frames, inversion takes one row: connect CLIP Text Encode without Re-weight Motion Text",
    ),
    "text_reweighted_twice": (
        {"positive": {"conditioning": ["negative", 0]}},
        "positive",
        "this CONDITIONING has 4 rows already: re-weight a text once",
    ),
    "no_inverted_latent": (
        {"sample": {"reference": ["reference", 0]}},
        "sample",
        "the reference has no inverted latent: put Invert Reference Latent behind Encode Reference Photo",
    ),
    "other_pictures_for_the_encoder": (
        {"many": ("RepeatImageBatch", {"image": ["photo", 0], "amount": 2}), "look": {"image": ["many", 0]}},
        "reference",
        "CLIP Vision Encode saw 2 pictures, the image input has 1: connect the same images",
    ),
    "nothing_to_look_with": (
        {"reference": {"clip_vision_output": None}},
        "reference",
        "Encode Reference Photo has neither of clip_vision and clip_vision_output: connect one",
    ),
    "another_view": (
        {"reference": {"height": 128}},
        "reference",
        "a photo of 451x300 with fit crop for a clip of 64x128: CLIP Vision Encode saw another part of it than the clip shows",
    ),
    "sampler_without_livephoto": (
        {"sample": {"model": ["demo", 0]}},
        "sample",
        "LivePhoto Sampler needs the MODEL from Apply LivePhoto: put that node in front of it",
    ),
    "unknown_fit": ({"reference": {"fit": "squeeze"}}, "reference", "fit is 'squeeze': choose one of crop, pad, stretch"),
    "unknown_sampler": ({"sample": {"sampler_name": "best"}}, "sample", "sampler_name is 'best': choose one of euler"),
    "unknown_scheduler": ({"sample": {"scheduler": "best"}}, "sample", "scheduler is 'best': choose one of simple"),
    "unknown_schedule": (
        {"windows": ("LivePhotoContextWindows", {**WINDOWS, "schedule": "best"}), "sample": {"model": ["windows", 0]}},
        "windows",
        "schedule is 'best': choose one of standard_alternating, standard_static, standard_uniform, looped_uniform",
    ),
    "too_much_overlap": (
        {"windows": ("LivePhotoContextWindows", {**WINDOWS, "overlap": 16}), "sample": {"model": ["windows", 0]}},
        "windows",
        "overlap is 16, a window's length 16: make the overlap less",
    ),
    "one_picture_to_measure": (
        {"measure": {"images": ["photo", 0]}},
        "measure",
        "motion is measured between frames, a clip here has 1: connect a whole clip",
    ),
    "levels_of_no_checkpoint": (
        {"load": checkpoint("wide.safetensors")["load"], "measure": {"livephoto_model": ["load", 0]}},
        "measure",
        "wide.safetensors has no levels yet: run livephoto calibrate on it first",
    ),
}
# what ComfyUI itself refuses, and how
INVALID = {
    "level_11": ({"motion": {"level": 11.0}}, "motion", "value_bigger_than_max"),
    "level_0": ({"motion": {"level": 0.0}}, "motion", "value_smaller_than_min"),
    "level_in_words": ({"motion": {"level": "high"}}, "motion", "invalid_input_type"),
    "no_negative": ({"sample": {"negative": None}}, "sample", "required_input_missing"),
    "ksampler_without_negative": (
        {**ksampler(4), "sample": ("KSampler", {k: v for k, v in KSAMPLER.items() if k != "negative"})},
        "sample",
        "required_input_missing",
    ),
    "a_clip_of_one_frame": ({"sample": {"frames": 1}}, "sample", "value_smaller_than_min"),
    "a_latent_for_a_reference": ({"apply": {"reference": ["reference", 2]}}, "apply", "return_type_mismatch"),
}


def save_checkpoint(path, base, **content):
    """A checkpoint for the demo's base with another image encoder."""
    shape = dataclasses.replace(ContentShape(width=24, heads=2, head_width=8), **content)
    save_adapter(LivePhotoAdapter(AdapterConfig(base=base, content=shape)), path)


@pytest.fixture(scope="module")
def folder(server, demo):
    """models/livephoto, with the files that the errors need."""
    folder, base = server.base / "models" / "livephoto", demo[1].config.base
    save_checkpoint(folder / "wide.safetensors", base)
    save_checkpoint(folder / "patches.safetensors", base, token_width=96)
    whole = (folder / "wide.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    wan = {"patch_embedding.weight": torch.zeros(8, 16, 1, 2, 2), "blocks.0.self_attn.q.weight": torch.zeros(8, 8)}
    save_file(wan, folder / "wan.safetensors")
    return folder


@pytest.fixture(scope="module")
def pixels(server, clip_graph, frames_of):
    """The clip of the unchanged graph."""
    return frames_of(server.run(clip_graph))


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_one_line_on_its_node_and_leaves_nothing(server, folder, clip_graph, changed, frames_of, pixels, name):
    changes, node, message = ERRORS[name]
    error = server.run(changed(clip_graph, **changes)).error
    said = error["exception_message"].strip()
    print(said)
    assert (error["node_id"], error["exception_type"].rpartition(".")[2]) == (node, "LivePhotoError")
    assert message in said
    assert "\n" not in said
    run = server.run(clip_graph)
    assert torch.equal(frames_of(run), pixels)


@pytest.mark.parametrize("name", INVALID)
def test_comfyui_refuses_on_the_node(server, clip_graph, changed, refused, name):
    changes, node, kind = INVALID[name]
    with pytest.raises(refused) as caught:
        server.queue(changed(clip_graph, **changes))
    assert [error["type"] for error in caught.value.answer["node_errors"][node]["errors"]] == [kind]
