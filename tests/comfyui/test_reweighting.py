"""Re-weight Motion Text weighs as the core and `livephoto inspect --text` do; Measure Motion measures as the core does."""

import pytest
import torch

from livephoto_core.commands.inspect_file import word_weights
from livephoto_core.encoding import encode_text
from livephoto_core.intensity import clip_ssim, fractional_level
from livephoto_core.media import fit_image

# as in inside/reweighting.py
TEXT, FRAMES = "the camera pans left while xylophones glimmer", 16
REFUSALS = {
    "text_of_another_width": "the text is 768 wide, the LivePhoto checkpoint needs 96: encode it with the CLIP of the MODEL",
    "text_of_rows": "this CONDITIONING has 16 rows already: re-weight a text once, before anything that batches it",
    "part_of_a_chunk": "the text has 60 tokens, CLIP gives 77 a chunk: connect CLIP Text Encode's output",
    "strength_that_is_no_number": "strength is nan: give a number",
    "one_frame": "motion is measured between frames, a clip here has 1: connect a whole clip",
    "broken_frames": "a clip's SSIM must be a finite number, got nan; check its frames for nan",
    "no_thresholds": "bare.safetensors has no levels yet: run livephoto calibrate on it first",
}


@pytest.fixture(scope="module")
def results(inside):
    return inside("reweighting")


def test_words_weigh_as_livephoto_inspect_says(results, demo):
    found, expected = results("plain")["words"], word_weights(*demo, TEXT)
    print(found)
    assert [word for word, _ in found] == [word for word, _ in expected] == TEXT.split()
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected], abs=1e-4)
    assert max(weight for _, weight in found) - min(weight for _, weight in found) > 1e-3


def test_rows_are_the_cores(results, demo):
    found, (base, adapter) = results("plain"), demo
    with torch.no_grad():
        text = encode_text(base, [TEXT])
        weights = adapter.reweight(text, FRAMES)
    assert torch.allclose(found["weights"], weights, atol=1e-4)
    assert torch.allclose(found["rows"], (text[:, None] * weights[..., None])[0], atol=1e-4)


def test_words_are_listed_and_shown_on_the_node(results):
    found = results("plain")
    assert found["listing"] == "\n".join(f"{word} {weight:.2f}" for word, weight in found["words"])
    assert found["picture"].shape[0] == 1
    assert found["picture"].shape[2] > 40 * len(found["words"])
    [[kind, name]] = found["shown"]
    assert kind == "temp"
    assert name.endswith(".png")


def test_without_a_text_the_tokens_are_listed(results):
    found = results("without_words")
    lines = [line.split() for line in found["listing"].splitlines()]
    assert [int(number) for number, _ in lines] == list(range(77))
    assert torch.isfinite(found["picture"]).all()


def test_text_of_several_chunks(results):
    found, alone = results("long"), results("plain")
    chunks = found["text"].shape[1] // 77
    assert chunks > 1
    assert found["rows"].shape == (FRAMES, 77 * chunks, 96)
    for chunk in range(chunks):
        place = slice(77 * chunk, 77 * (chunk + 1))
        expected = found["text"][0, place] * found["weights"][0, :, place, None]
        assert torch.allclose(found["rows"][:, place], expected, atol=1e-5)
    assert [word for word, _ in found["words"]] == [word for word, _ in alone["words"]] * 20


def test_weighted_words_keep_their_weight(results):
    found = results("weighted_word")
    assert [word for word, _ in found["words"]] == ["the", "camera", "pans", "left"]
    assert torch.allclose(found["rows"], (found["text"] * found["weights"][0, ..., None]), atol=1e-5)


def test_strength(results):
    found = results("strengths")
    assert torch.equal(found["0.0"], found["text"].expand(FRAMES, -1, -1))
    assert torch.allclose(found["0.5"], (found["0.0"] + found["1.0"]) / 2, atol=1e-5)
    assert not torch.allclose(found["1.0"], found["0.0"], atol=1e-2)


def test_other_frames_and_other_nodes_keys(results):
    found = results("other_frames_and_keys")
    assert found["rows"] == [5, 5]
    assert found["options"] == {"strength": 0.5, "of another pack": 3, "livephoto_frames": 5}
    assert not torch.allclose(found["first"], found["second"], atol=1e-2)
    assert results("plain")["options"] == [*results("plain")["given"], "livephoto_frames"]


def test_motion_is_measured_as_in_the_core(results, demo):
    found = results("motion")
    ssim = clip_ssim(found["frames"])
    level = fractional_level(float(ssim), demo[1].config.ssim_thresholds)
    assert found["ssim"] == pytest.approx(float(ssim), abs=1e-6)
    assert found["level"] == pytest.approx(level, abs=1e-4)
    assert found["with alpha"] == found["ssim"]
    assert found["report"] == f"level {level:.1f}, asked for 2.5 ({level - 2.5:+.1f}), SSIM {float(ssim):.4f}"
    assert found["shown"] == {"text": [found["report"]]}
    assert found["not asked"] == f"level {level:.1f}, SSIM {float(ssim):.4f}"


def test_each_clip_of_a_batch_is_measured_by_itself(results):
    """The cut between two photos' clips is no motion."""
    found = results("motion_of_two_clips")
    level, ssim, report = found["one"]
    assert found["report"] == f"1: {report}\n2: level 1.0, asked for 2.5 (-1.5), SSIM 1.0000"
    assert (found["level"], found["ssim"]) == (pytest.approx((level + 1) / 2), pytest.approx((ssim + 1) / 2))
    assert "16 images are not 3 clips of one length: set clips to the number of photos" in found["uneven"]["message"]
    assert "a clip here has 1: connect a whole clip" in found["short"]["message"]


def test_motion_is_measured_at_the_size_of_the_levels(results, demo):
    found, config = results("motion_of_a_larger_clip"), demo[1].config
    ssim = float(clip_ssim(fit_image(found["frames"], config.size, config.size, "crop")))
    assert found["ssim"] == pytest.approx(ssim, abs=1e-6)
    assert found["level"] == pytest.approx(fractional_level(ssim, config.ssim_thresholds), abs=1e-4)
    assert abs(ssim - float(clip_ssim(found["frames"]))) > 0.02


def test_motion_is_measured_by_the_checkpoints_measure(results):
    found = results("motion_by_another_measure")
    error = float((found["frames"].diff(dim=0) ** 2).mean())
    level = fractional_level(1 - error, [1 - 0.002 * k for k in range(1, 10)])
    assert 1 < level < 10 and found["level"] == pytest.approx(level, abs=1e-3)
    assert found["report"] == f"level {level:.1f}, MSE {error:.4g}, SSIM {found['ssim']:.4f}"


def test_still_clip_is_level_1(results):
    assert (results("still")["level"], results("still")["ssim"]) == (1.0, 1.0)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(results, name):
    found = results(name)
    print(found["message"])
    assert found["kind"] == "LivePhotoError"
    assert REFUSALS[name] in found["message"]
    assert "\n" not in found["message"]
