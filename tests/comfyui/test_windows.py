"""Long clips: each window gets the frame embeddings, levels and text rows of exactly its own frames."""

import pytest
import torch

from livephoto_core.checkpoint import read_config
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.config import noise_shares
from livephoto_core.noise import share_noise

FRAMES = 48
STATIC = [list(range(start, start + 16)) for start in (0, 12, 24, 32)]
REFUSALS = {
    "two_photos": "context windows take one photo at a time, the reference has 2",
    "two_long_photos": "the latent has 40 frames a photo, the LivePhoto checkpoint takes 32 at once: make its batch 64 or less",
    "rows_of_a_window_only": "the positive text has rows for 16 frames, the clip has 48: set the frames of Re-weight",
    "a_video_model": "SimpleNamespace is a video model: take the node out",
    "a_loop_of_windows_that_do_not_loop": "loop does nothing with standard_uniform: set schedule to looped_uniform",
    "windows_that_tell_no_length": "put LivePhoto Context Windows in place of their node",
    "windows_too_long": "the context windows have 40 frames, the LivePhoto checkpoint takes 32 at once: set their length",
}


@pytest.fixture(scope="module")
def results(inside):
    return inside("windows")


def of_frames(text, places):
    """The rows of a text for these frames; one row is for all."""
    return text[places] if len(text) > 1 else text.expand(len(places), -1, -1)


def check_windows(found):
    """Every UNet call got what belongs to its frames; returns the windows of each step."""
    steps, config = {}, read_config(DEMO_FOLDER / "adapter.safetensors")
    noise = share_noise(found["noise"][None], noise_shares(config, torch.linspace(1, 10, FRAMES)[None]))[0]
    for number, window in enumerate(found["windows"]):
        before = found["before"][number]
        places = torch.tensor(window if before is None else [before, *window])
        chunks = found["chunks"][number]
        texts = [found["negative"] if uncond else found["text"] for uncond in chunks]
        assert torch.equal(found[f"call{number}/context"], torch.cat([of_frames(text, places) for text in texts]))
        position, level = found[f"call{number}/stem"][:, -2:].unbind(1)
        for channel, whole in ((position, torch.linspace(0, 1, FRAMES)), (level, torch.linspace(1, 10, FRAMES))):
            expected = whole[places].repeat(len(chunks))[:, None, None].expand_as(channel)
            assert torch.allclose(channel, expected, atol=1e-6)
        if found["steps"][number] == found["steps"][0]:
            assert torch.allclose(found[f"call{number}/x"], noise[places].repeat(len(chunks), 1, 1, 1), atol=1e-2)
        steps.setdefault(found["steps"][number], []).append(window)
    assert torch.isfinite(found["latents"]).all()
    for windows in steps.values():
        assert {place for window in windows for place in window} == set(range(FRAMES))
    return list(steps.values())


def test_static_windows(results):
    found = results("standard_static")
    assert check_windows(found) == [STATIC]
    assert found["chunks"] == [[1, 0]] * 4


def test_looped_windows(results):
    first, second = check_windows(results("looped_uniform"))
    assert first != second
    assert any(window != sorted(window) for window in first + second), "no window joins the end to the beginning"


def test_uniform_windows(results):
    first, second = check_windows(results("standard_uniform"))
    assert first != second


def test_windows_as_the_node_is_set(results):
    found = results("as_the_node_is_set")
    assert (found["length"], found["overlap"], found["schedule"], found["loop"]) == (16, 2, "standard_alternating", False)
    first, second, third = check_windows(found)
    assert [(window[0], len(window)) for window in first] == [(0, 15), (13, 15), (26, 15), (39, 9)]
    assert [(window[0], len(window)) for window in second] == [(0, 9), (7, 15), (20, 15), (33, 15)]
    assert third == first


def test_alternating_windows_of_any_length(results):
    for numbers, steps in results("alternating_windows_of_many_lengths")["windows"].items():
        frames, length, overlap = map(int, numbers.split())
        for windows in steps:
            ends = [start + size for start, size in windows]
            assert (windows[0][0], ends[-1]) == (0, frames), numbers
            assert all(end - start == overlap for end, (start, _) in zip(ends[:-1], windows[1:], strict=True)), numbers
            assert max(size for _, size in windows) <= length, numbers
            assert len(windows) == 1 or min(size for _, size in windows) > max(overlap, length // 3 - 1), numbers
            assert (len(windows) == 1) == (frames <= length), numbers
        mirrored = [[frames - start - size, size] for start, size in reversed(steps[0])]
        assert steps[1] == mirrored, numbers


@pytest.mark.parametrize("frames", [17, 24, 33, 48, 64, 100, 128, 1024])
def test_cost_of_alternating_windows_grows_with_the_frames(results, frames):
    steps = results("alternating_windows_of_many_lengths")["windows"][f"{frames} 16 2"]
    for windows in steps:
        assert sum(size for _, size in windows) <= 1.15 * frames
        assert min(size for _, size in windows) >= 6
    first, second = ({start for start, _ in windows[1:]} for windows in steps)
    assert min(abs(one - other) for one in first for other in second) >= 4


def test_alternating_windows_under_a_sampler_that_calls_between_two_steps(results):
    first, between, second = check_windows(results("alternating_windows_between_two_steps"))
    assert first == between != second


def test_reweighted_text(results):
    found = results("reweighted_text")
    assert len(found["text"]) == FRAMES
    assert not torch.equal(found["text"][0], found["text"][-1])
    assert check_windows(found) == [STATIC]


def test_text_of_one_row(results):
    assert check_windows(results("text_of_one_row")) == [STATIC]


def test_sampler_that_calls_between_two_steps(results):
    assert len(check_windows(results("calls_between_two_steps"))) == 3


def test_other_packs_are_told_which_frames_a_window_has(results):
    *windows, whole = results("what_other_packs_are_told")["told"]
    assert [told["sub_idxs"] for told in windows] == STATIC
    assert all((told["context_length"], told["full_length"]) == (16, FRAMES) for told in windows)
    assert whole is None


def test_windows_of_animatediff_evolved(results):
    found = results("windows_of_animatediff_evolved")
    assert found["windows"] == STATIC
    for number, window in enumerate(STATIC):
        position, level = found[f"stem{number}"][:, -2:, 0, 0].unbind(1)
        assert torch.allclose(position, torch.linspace(0, 1, FRAMES)[window], atol=1e-6)
        assert torch.allclose(level, torch.linspace(1, 10, FRAMES)[window], atol=1e-6)


def test_clip_of_one_window_is_sampled_as_without(results):
    found = results("a_clip_of_one_window")
    assert torch.equal(found["windowed"], found["plain"])


def test_newer_interface(results):
    found = results("newer_comfyui")
    assert found["kinds"] == ["Handler", "NewerHandler", "IndexListContextHandler"]
    assert found["before"] == [None] * 4
    assert check_windows(found) == [STATIC]
    assert torch.equal(found["latents"], results("standard_static")["latents"])


def test_alternating_windows_on_the_newer_interface(results):
    first, second = check_windows(results("newer_comfyui_alternating"))
    assert first != second


def test_newer_interface_with_the_frame_before_each_window(results):
    found = results("the_frame_before_each_window")
    assert found["before"] == [None, 11, 23, 31]
    assert check_windows(found) == [STATIC]


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(results, name):
    found = results(name)
    print(found["message"])
    assert found["kind"] == "LivePhotoError"
    assert REFUSALS[name] in found["message"]
    assert "\n" not in found["message"]
