"""LivePhoto-Wan2.1 on ComfyUI's own Wan2.1 model, samplers, VAE and text encoder, against outputs of the official code."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from livephoto_core.wan_files import WanSize, text_shapes, wan_shapes


def load_recipe():
    spec = importlib.util.spec_from_file_location("wan_recipe", Path(__file__).parents[1] / "wan_recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()
# the smallest that ComfyUI builds: it counts a head for each 128 channels
SMALL = WanSize(width=128, feed_forward=64, blocks=2)


@pytest.fixture(scope="module")
def results(inside, standins):
    def prepare(base):
        models = base / "models"
        for folder in ("diffusion_models", "vae"):
            (models / folder).mkdir(exist_ok=True)
        save_file(recipe.inputs(), base / "input" / "golden.safetensors")
        save_file(recipe.weights(), models / "diffusion_models" / "base.safetensors")
        shapes = {**wan_shapes(SMALL), **text_shapes()}
        recipe.save_zeros(models / "diffusion_models" / "shut.safetensors", shapes)
        recipe.save_zeros(models / "diffusion_models" / "wan2.1_t2v_1.3B.safetensors", wan_shapes(SMALL))
        del shapes["text_reweight.warmup"]
        recipe.save_zeros(models / "diffusion_models" / "missing.safetensors", shapes)
        lora = recipe.lora()
        save_file(lora, models / "loras" / "lora.safetensors")
        dit = {name: tensor for name, tensor in lora.items() if not name.startswith("text_reweight.")}
        save_file(dit, models / "loras" / "dit.safetensors")
        parts = {".lora_A.default": ".lora_down", ".lora_B.default": ".lora_up"}
        other = {}
        for name, tensor in lora.items():
            old = next(part for part in parts if part in name)
            other[f"diffusion_model.{name.replace(old, parts[old])}"] = tensor
            other[f"diffusion_model.{name.partition(old)[0]}.alpha"] = torch.tensor(2.0)
        save_file(other, models / "loras" / "kohya.safetensors")
        sd15 = {"lora_unet_mid_block.lora_down.weight": torch.zeros(2, 4), "lora_unet_mid_block.lora_up.weight": torch.zeros(4, 2)}
        save_file(sd15, models / "loras" / "sd15.safetensors")
        (models / "loras" / "cut.safetensors").write_bytes((models / "loras" / "lora.safetensors").read_bytes()[:9000])
        standins.save_wan_vae(models / "vae" / "wan_2.1_vae.safetensors")

    return inside("wan", "--force-fp32", prepare=prepare)


@pytest.fixture(scope="module")
def golden():
    return recipe.golden()


def furthest(name, ours, theirs):
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    print(f"{name}: {difference:.1e}")
    return difference


def test_released_layout_is_comfyuis_model(results):
    assert results("layout") == {"released": True, "small": True, "kind": "WAN21", "dtype": "torch.float32"}


@pytest.mark.parametrize(
    "entry",
    ("uniform", "clean_first", "mixed", "nonsquare", "clean_first_level0", "clean_first_negative_level0", "clean_first_warmup_off"),
)
def test_prediction_is_the_official_one(results, golden, entry):
    name = f"forward.{entry}"
    assert furthest(name, results("forward")[name], golden[name]) < 1e-4


@pytest.mark.parametrize("name", ("lora.clean_first", "lora.clean_first_dit_only"))
def test_merged_lora_is_the_official_one(results, golden, name):
    assert furthest(name, results("lora")[name], golden[name]) < 1e-4


def test_lora_in_another_spelling_is_the_same_and_its_alpha_counts_for_nothing(results):
    found = results("lora")
    assert torch.equal(found["other spelling"], found["lora.clean_first"])


def test_every_level_changes_the_prediction_and_none_is_the_null_branch(results):
    found = results("levels")
    velocities = found["velocities"]
    closest = min((a - b).abs().max().item() for i, a in enumerate(velocities) for b in velocities[:i])
    print(f"closest levels: {closest:.1e}")
    assert closest > 0.1
    assert torch.equal(found["level 0"], found["empty"])


@pytest.mark.parametrize("cfg", (5, 1))
def test_end_to_end_is_the_official_clip(results, golden, cfg):
    found, name = results(f"cfg{cfg}"), f"e2e.cfg{cfg}"
    assert furthest(f"{name}.step1", found["step1"], golden[f"{name}.step1"][:, :, 1:]) < 1e-3
    assert furthest(f"{name}.final", found["final"], golden[f"{name}.final"]) < 1e-3
    assert furthest(f"{name}, first frame", found["final"][:, :, :1], recipe.inputs()["input.reference"]) < 1e-5
    assert torch.equal(found["timesteps"], golden["e2e.timesteps_model"])
    # at cfg 1 the prompt at its level runs alone
    assert set(found["branches"]) == {3 if cfg == 5 else 1}
    assert found["rows"] == [512]


def test_comfyuis_dual_cfg_guider_agrees(results):
    found = results("stock_guider")
    assert furthest("stock guider", found["ours"], found["stock"]) < 1e-4


def test_run_in_two_stages_is_the_whole_one(results):
    found = results("split_run")
    assert furthest("photo after the first stage", found["first stage"], found["photo"]) < 1e-5
    assert furthest("first frame", found["split"][:, :, :1], found["whole"][:, :, :1]) < 1e-5
    assert furthest("split run", found["split"], found["whole"]) < 1e-4


@pytest.mark.parametrize("sampler", ("uni_pc", "uni_pc_bh2", "dpm_fast"))
def test_photo_stays_under_samplers_that_do_not_end_at_zero(results, sampler):
    found = results("other_samplers")
    assert furthest(sampler, found[sampler], found["photo"]) < 1e-5


def test_frame_that_is_kept_by_half_is_blended_once(results):
    found = results("halved_mask")
    assert furthest("kept by half", found["ours"], found["ComfyUI's"]) < 1e-6
    assert not torch.equal(found["ours"][:, :, 1], found["ours"][:, :, 0])


def test_functions_before_the_formula_see_all_of_it(results):
    found = results("pre_cfg")
    assert found["calls"] == [[2, 2, 5.0]] * 2
    assert found["names"] == ["cond_scale", "conds", "conds_out", "input", "model", "model_options", "sigma", "timestep"]
    assert furthest("half the guidance", found["halved"], found["half"]) < 1e-4
    for name in ("halved", "APG"):
        assert (found[name] - found["whole"]).abs().max() > 0.01


def test_newer_comfyui_can_load_the_model_anew(results):
    """Its TorchCompileModel, hooks on texts and several GPUs need that."""
    expected = {"asked": [False, True], "equal": [True] * 2, "another": True, "held": [0, 0], "says": [True] * 2}
    assert results("reload") == expected


def test_timesteps_of_the_bfloat16_run(results, golden):
    assert torch.equal(results("bfloat16")["timesteps"], golden["schedule_bf16.n12.timesteps_model"])


def test_two_photos_at_once_are_two_clips(results):
    found = results("two_photos")
    assert furthest("two photos", found["both"], found["alone"]) < 1e-4
    assert (found["both"][0] - found["both"][1]).abs().max() > 0.1


def test_nothing_stays_in_the_base_model(results):
    found = results("traces")
    assert torch.equal(found["before"], found["after"])
    assert torch.equal(found["first"], found["again"])
    assert found["broken"] == "broken off"
    assert found["same weights"] and found["own method"]
    assert (found["hooks"], found["held"], found["options"]) == (0, [0] * 5, {})


def test_without_a_photo_all_frames_have_one_timestep(results):
    assert results("without_a_photo")["timesteps"].tolist() == [[1000], [833]]


def test_text_without_padding_gets_its_rows_back(results):
    found = results("trimmed_text")
    assert torch.equal(found["short"], found["whole"])
    assert found["options"] == {"other": "kept", "livephoto_wan_branch": "positive"}


def test_reference_photos_are_fitted_and_kept_as_first_frames(results):
    found = results("reference")
    assert found["image"].shape == (2, 32, 48, 3)
    assert found["samples"].shape == (2, 16, 3, 4, 6)
    assert torch.equal(found["samples"][:, :, :1], found["alone"])
    assert (found["samples"][0, :, 0] - found["samples"][1, :, 0]).abs().max() > 1e-3
    assert not found["samples"][:, :, 1:].any()
    assert torch.equal(found["noise_mask"].amax((1, 3, 4)), torch.tensor([[0.0, 1, 1], [0, 1, 1]]))
    assert found["noise_mask"].shape == (2, 1, 3, 4, 6)


def test_loader_shows_the_gate_and_warns_when_it_is_shut(results):
    assert results("reports") == {
        "open": "warmup 0.600, gate 0.60: the motion level acts",
        "shut": "warmup 0.000, gate 0.00: the gate is shut, so the motion level does nothing with this file",
    }


def test_brackets_are_weights_unless_escaped(results):
    """As the help page of Motion Intensity (Wan) says."""
    found = results("brackets")
    assert found["escaped tokens"] == [[token, 1.0] for token in found["verbatim"]]
    assert {weight for _, weight in found["plain tokens"]} == {1.0, 1.1}
    assert {weight for _, weight in found["weighted tokens"]} == {1.0, 1.5}
    bare = [token for token, _ in found["bare tokens"]]
    assert [token for token, _ in found["weighted tokens"]] == [token for token, _ in found["plain tokens"]]
    assert len(found["escaped tokens"]) > len(bare)
    for name in ("escaped", "plain", "weighted", "bare"):
        text, length = found[f"{name} text"], len(found[f"{name} tokens"])
        assert text.shape == (1, 512, 4096)
        assert not text[:, length:].any()
    assert not torch.equal(found["plain at level"], found["weighted at level"])
    assert found["weighted at level"].shape == (1, 512, 4096)


BAD_FILES = {
    "plain Wan": "wan2.1_t2v_1.3B.safetensors: this is plain Wan2.1, not LivePhoto-Wan2.1: it lacks the text module; get base.",
    "missing": "missing.safetensors is not a whole LivePhoto-Wan2.1 base file; 1 missing: text_reweight.warmup []: get",
    "none": "models/diffusion_models has no file none.safetensors: put it there",
    "no such LoRA": "models/loras has no file none.safetensors: put it there",
    "other LoRA": "sd15.safetensors matches nothing in LivePhoto-Wan2.1 (lora_unet_mid_block, for example): choose lora",
    "cut LoRA": "cut.safetensors is incomplete or damaged",
    "rounding": "timesteps is 'int8': choose one of bfloat16, float32",
    "strength": "lora_strength is nan: give a number",
}
BAD_INPUTS = {
    "level": "motion intensity must be a whole number from 1 to 6, got 7",
    "another encoder": "the text is 768 wide, LivePhoto-Wan2.1 needs 4096: encode it with umt5-xxl (Load CLIP, type wan)",
    "long text": "the text has 600 tokens, LivePhoto-Wan2.1 takes 512: shorten it",
    "twice": "this CONDITIONING already went through Motion Intensity (Wan): connect CLIP Text Encode without it",
    "width": "width is 850, which is no multiple of 16: take 848",
    "height": "height is 100, which is no multiple of 16: take 96",
    "length": "length is 80, Wan2.1 makes 4n + 1 frames: take 81",
    "fit": "fit is 'squeeze': choose one of crop, pad, stretch",
    "image VAE": "the VAE makes latents of [12, 16, 16], Wan2.1's are [16, 1, 8, 8]: choose wan_2.1_vae in Load VAE",
    "no level": "positive is not the output positive of Motion Intensity (Wan): connect its three outputs by their names",
    "swapped": "negative is not the output negative of Motion Intensity (Wan): connect its three outputs by their names",
    "plain model": "LivePhoto Guider (Wan) needs the MODEL of Load LivePhoto-Wan2.1: connect that one",
    "cfg": "cfg is nan: give a number",
    "shift": "shift is nan: give a number",
    "windows": "the model was given 3 latent frames of a clip of 5: LivePhoto-Wan2.1 takes clips whole, take the",
}


@pytest.mark.parametrize("fault", [*BAD_FILES, *BAD_INPUTS])
def test_mistake_is_one_line_that_says_what_to_do(results, fault):
    found = results("bad_files" if fault in BAD_FILES else "bad_inputs")[fault]
    print(found["message"])
    assert found["kind"] == "LivePhotoError"
    assert {**BAD_FILES, **BAD_INPUTS}[fault] in found["message"]
    assert "\n" not in found["message"]


def test_files_that_were_replaced_are_loaded_anew(results):
    found = results("replaced_files")
    for first, again, replaced in (found["base"], found["lora"], found["demo"]):
        assert first == again != replaced
    assert not found["by a wire"].strip()
