"""A ControlNet beside LivePhoto: in both hosts alike, a hint a frame or one for all, also in windows."""

import pytest
import torch

# as in inside/control.py
LONG = 24
REFUSALS = {
    "hints_for_fewer_frames": "the ControlNet of the positive text has 3 pictures for 1 clip of 4 frames: give it one picture or 4",
    "a_hint_a_photo": (
        "the ControlNet of the positive text has 2 pictures for 2 clips of 4 frames: "
        "give it one picture, 4 for all clips alike, or 8"
    ),
    "behind_another_packs_in_windows": (
        "in context windows a ControlNet of ComfyUI's own with a picture a frame must not come before another pack's: "
        "apply it behind the other's, or use one kind"
    ),
}


@pytest.fixture(scope="module")
def results(inside):
    return inside("control")


def test_same_output_of_the_unet(results, demo, replay):
    found, (base, adapter) = results("a_hint_a_frame"), demo
    assert found["chunks"] == [[1, 0], [1, 0]]
    difference = replay(found, base.unet, adapter)
    print(f"controlnet: {difference:.1e}")
    assert difference < 1e-4
    assert replay(found, base.unet, adapter, control=False) > 0.01
    assert replay(found, base.unet, None) > 0.01


def test_controlnet_counts_and_leaves_nothing(results):
    without = results("alone")["latents"]
    assert not torch.allclose(results("a_hint_a_frame")["latents"], without, atol=0.1)
    assert torch.equal(results("alone_afterwards")["latents"], without)


@pytest.mark.parametrize("name", REFUSALS)
def test_hints_that_would_begin_again_are_refused(results, name):
    found = results(name)
    print(found["message"])
    assert found == {"kind": "LivePhotoError", "message": REFUSALS[name]}


def test_hints_of_a_clip_go_for_each(results):
    found = results("hints_for_both_photos")
    print(f"hints of a clip: {(found['alike'] - found['each']).abs().max():.1e}")
    assert torch.allclose(found["alike"], found["each"], atol=1e-4)


@pytest.mark.parametrize("name", ["a_hint_a_frame_in_windows", "more_hints_than_frames_in_windows"])
def test_windows_see_their_own_hints(results, name):
    found = results(name)
    assert found["windows"] == [list(range(16)), list(range(8, 24))]
    assert found["chunks"] == [[1, 0], [1, 0]]
    for hints, window in zip(found["seen"], found["windows"], strict=True):
        assert hints == pytest.approx([place / LONG for place in window] * 2, abs=1e-6)


def test_one_hint_is_for_all_windows(results):
    found = results("a_hint_for_all_in_windows")
    assert found["seen"] == [[0.25], [0.25]]
    assert found["chunks"] == [[1, 0], [1, 0]]
