"""ComfyUI's samplers make clips of the patched MODEL, and LivePhoto Sampler makes what they make."""

import pytest
import torch
from einops import rearrange

from livephoto_core.inversion import prior_noise
from livephoto_core.noise import share_noise


@pytest.fixture(scope="module")
def results(inside):
    return inside("sampling")


def test_ksampler_calls_the_livephoto_unet(results, demo, replay):
    found, (base, adapter) = results("ksampler_recorded"), demo
    assert found["chunks"] == [[1, 0]] * 4
    assert replay(found, base.unet, adapter) < 1e-4
    assert replay(found, base.unet, None) > 0.01


def test_few_steps_by_lcm(results, demo, replay):
    """ComfyUI's LCM sampling goes through Apply LivePhoto: its fifty noise levels, on the checkpoint's schedule."""
    found, (base, adapter) = results("few_steps"), demo
    assert "LCM" in found["kinds"]
    assert found["levels"] == 50
    assert torch.allclose(found["most"], found["own most"])
    assert found["chunks"] == [[0]] * 4
    assert torch.isfinite(found["latents"]).all()
    assert replay(found, base.unet, adapter) < 1e-4


def test_the_photo_is_inverted_from_the_first_noise_to_the_last_by_lcm_too(results):
    """LCM's sampling knows fifty noise levels: 100 steps are those, and the ones half-way between."""
    found = results("inversion_by_lcm")
    assert found["2"] == pytest.approx([19, 499], abs=21)
    assert len(found["20"]) == 20 and found["20"][-1] > 900
    assert len(found["100"]) == 99 and found["100"][-1] > 950
    assert all(timesteps == sorted(timesteps) for timesteps in found.values())


def test_another_schedule_behind_apply_is_refused(results):
    found = results("schedule_set_behind")
    print(found["message"])
    assert found["kind"] == "LivePhotoError"
    assert "put ModelSamplingDiscrete before Apply LivePhoto" in found["message"]
    assert "noise schedule" in results("sampling_of_another_kind")["message"]
    assert torch.isfinite(found["latents"]).all()


def test_zero_terminal_snr_stays(results):
    found = results("zero_terminal_snr")
    assert torch.equal(found["before"], found["behind"])
    assert found["before"][-1] > 10 * found["without"][-1]
    assert torch.equal(found["latents before"], found["latents behind"])


def test_sampler_custom_advanced_gives_what_ksampler_gives(results):
    assert torch.equal(results("random_noise")["latents"], results("ksampler_recorded")["latents"])


def test_two_halves_give_the_whole(results):
    found = results("halves")
    difference = (found["latents"] - found["whole"]).abs().max().item()
    print(f"halves: {difference:.1e}")
    assert difference < 1e-4
    assert not torch.allclose(found["first"], found["whole"], atol=0.1)


def test_livephoto_sampler_without_prior_is_ksampler(results):
    assert torch.equal(results("livephoto_sampler_without_prior")["latents"], results("ksampler_recorded")["latents"])


def test_livephoto_sampler_with_prior_is_sampler_custom_advanced_with_prior_noise(results):
    with_prior = results("livephoto_sampler_with_prior")["latents"]
    assert torch.equal(with_prior, results("prior_noise")["latents"])
    assert not torch.allclose(with_prior, results("ksampler_recorded")["latents"], atol=0.01)


def test_prior_noise_is_the_papers(results):
    found = results("prior_noise")
    expected = prior_noise(found["plain"][None], found["inverted"], 0.033, 0.016)[0]
    assert torch.allclose(found["noise"], expected, atol=1e-6)


def test_prior_noise_without_inversion_says_what_to_connect(results):
    found = results("no_inverted_latent")
    assert found["kind"] == "LivePhotoError"
    assert "put Invert Reference Latent behind Encode Reference Photo" in found["message"]


@pytest.mark.parametrize(("name", "clips"), [("one", 1), ("two", 2)])
def test_any_sampler_shares_the_noise_as_the_checkpoint_says(results, name, clips):
    found = results("shared_noise")
    own, shared = (rearrange(found[f"{name}, {share}"], "(b f) c h w -> b f c h w", b=clips) for share in (0.0, 0.6))
    assert torch.allclose(shared, share_noise(own, 0.6), atol=1e-5)
    assert not torch.allclose(shared, own, atol=0.1)


def test_noise_that_is_shared_already_is_not_added_to_itself(results):
    found = results("repeated_noise")
    for name, frames in (("all", [1, 2, 3]), ("one", [2])):
        for frame in frames:
            assert torch.equal(found[name][frame], found[name][0])
    assert torch.allclose(found["one"], share_noise(found["own"][None], 0.6)[0], atol=1e-5)
    assert not torch.allclose(found["one"][1], found["own"][1], atol=0.1)


def test_livephoto_sampler_has_the_photos_of_apply(results):
    found = results("another_reference")
    for name, photos in (("two", "2 photos"), ("other", "1 photo")):
        assert f"another reference ({photos}) than Apply LivePhoto (1 photo)" in found[name]["message"]


def test_any_sampler_shares_more_of_the_noise_of_what_moves_less(results):
    found = results("shared_noise")
    assert found["level"] == 6
    assert torch.allclose(found["by level"], share_noise(found["one, 0.0"][None], 0.7)[0], atol=1e-5)


def test_what_the_base_predicts_must_be_what_the_checkpoint_says(results):
    found = results("other_predictions")
    for name, predicted in (("eps before", "epsilon"), ("eps behind", "epsilon"), ("lcm", "epsilon"), ("x0", "x0")):
        assert f"predicts v_prediction, this one predicts {predicted}" in found[name]["message"], name
        assert "ModelSamplingDiscrete" in found[name]["message"]
    for name in ("v", "not told"):
        assert found[name]["kind"] is None, found[name]["message"]


def test_a_checkpoint_without_content_attention_takes_any_encoders_photo(results):
    found = results("no_content_attention")
    assert torch.equal(found["own"], found["others"])
    assert not torch.allclose(found["own"], found["whole"], atol=0.1)


def test_a_checkpoint_for_another_size_of_the_photo_is_refused(results):
    assert "224 pixels (content.image_size)" in results("other_sizes_of_the_photo")["message"]
    assert "livephoto animate" in results("other_sizes_of_the_photo")["message"]
