"""A ControlNet beside LivePhoto: in both hosts alike, a hint a frame or one for all, also in windows."""

import pytest
import torch

# as in inside/control.py
LONG = 24


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


def test_windows_see_their_own_hints(results):
    found = results("a_hint_a_frame_in_windows")
    assert found["windows"] == [list(range(16)), list(range(8, 24))]
    assert found["chunks"] == [[1, 0], [1, 0]]
    for hints, window in zip(found["seen"], found["windows"], strict=True):
        assert hints == pytest.approx([place / LONG for place in window] * 2, abs=1e-6)


def test_one_hint_is_for_all_windows(results):
    found = results("a_hint_for_all_in_windows")
    assert found["seen"] == [[0.25], [0.25]]
    assert found["chunks"] == [[1, 0], [1, 0]]
