import math
import shutil

import numpy as np
import pytest
import torch
from einops import rearrange
from skimage.metrics import structural_similarity

from livephoto_core.errors import LivePhotoError
from livephoto_core.intensity import (
    ManyClipsSsim,
    calibrate,
    check_level,
    check_thresholds,
    clip_ssim,
    fractional_level,
    level,
    ssim,
)

THRESHOLDS = (0.99, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)


def reference(a, b):
    pairs = zip(*(rearrange(x.double(), "n c h w -> n h w c").numpy() for x in (a, b)), strict=True)
    return [structural_similarity(x, y, channel_axis=-1, data_range=1.0) for x, y in pairs]


def pictures(kind):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 3, 37, 29, generator=generator)
    ramp = torch.linspace(0, 1, 29).expand(3, 3, 37, 29)
    half = (ramp > 0.5).float()
    return {
        "noise": (noise, noise.flip(0)),
        "noisy ramp": (ramp, (ramp + 0.05 * noise).clamp(0, 1)),
        "flat bright": (torch.full_like(noise, 0.99), torch.full_like(noise, 0.98)),
        "flat bright with faint noise": (1 - 1e-3 * noise, 1 - 1e-3 * noise.flip(0)),
        "black and bright halves with faint noise": (half - 1e-3 * half * noise, half - 1e-3 * half * noise.flip(0)),
        "white and black": (torch.ones_like(noise), torch.zeros_like(noise)),
        "smallest": (noise[..., :7, :7], noise.flip(0)[..., :7, :7]),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "noise",
        "noisy ramp",
        "flat bright",
        "flat bright with faint noise",
        "black and bright halves with faint noise",
        "white and black",
        "smallest",
    ],
)
def test_ssim_is_scikit_images(kind):
    a, b = pictures(kind)
    assert ssim(a, b).tolist() == pytest.approx(reference(a, b), abs=1e-4)


@pytest.mark.parametrize("layout", ["n h w c -> n c h w", "h n c w -> n c h w", "n c w h -> n c h w"])
def test_the_order_in_memory_does_not_matter(layout):
    a, b = pictures("noisy ramp")
    stored, seen = layout.split(" -> ")
    moved_a, moved_b = (rearrange(rearrange(x, f"{seen} -> {stored}").contiguous(), layout) for x in (a, b))
    assert ssim(moved_a, moved_b).tolist() == ssim(a, b).tolist()
    assert clip_ssim(torch.stack([moved_a, moved_b], 1)).tolist() == clip_ssim(torch.stack([a, b], 1)).tolist()
    for first, second, moved in zip(a, b, rearrange([moved_a, moved_b], "f n c h w -> n f c h w"), strict=True):
        assert clip_ssim(moved) == clip_ssim(torch.stack([first, second]))


def test_a_device_that_is_no_cpu_computes_all_at_once():
    clips = torch.empty(5, 4, 3, 40, 32, device="meta")
    assert clip_ssim(clips).shape == (5,) and clip_ssim(clips).device.type == "meta"
    assert ssim(clips[:, 0], clips[:, 1]).shape == (5,)


@pytest.mark.parametrize("kind", ["noise", "noisy ramp", "flat bright with faint noise"])
def test_identical_pictures_give_exactly_one(kind):
    a, _ = pictures(kind)
    assert ssim(a, a.clone()).tolist() == [1.0] * len(a)


def test_half_precision_is_computed_in_float32():
    a, b = (x.half() for x in pictures("noisy ramp"))
    assert ssim(a, b).tolist() == pytest.approx(reference(a, b), abs=1e-4)


def test_clip_ssim_is_the_mean_over_adjacent_frames():
    clips = torch.rand(2, 4, 3, 16, 12, generator=torch.Generator().manual_seed(1))
    expected = [sum(reference(clip[:-1], clip[1:])) / 3 for clip in clips]
    assert clip_ssim(clips).tolist() == pytest.approx(expected, abs=1e-4)
    one = clip_ssim(clips[1])
    assert one.shape == ()
    assert one.item() == pytest.approx(expected[1], abs=1e-4)


def test_pictures_taller_than_a_strip_are_measured_whole():
    clips = torch.rand(2, 3, 3, 400, 160, generator=torch.Generator().manual_seed(2))
    clips = (clips + torch.linspace(0, 3, 400)[:, None]) / 4
    expected = [sum(reference(clip[:-1], clip[1:])) / 2 for clip in clips]
    assert clip_ssim(clips).tolist() == pytest.approx(expected, abs=1e-4)


def test_still_clips_give_exactly_one():
    for kind in ("noise", "noisy ramp", "flat bright with faint noise"):
        assert clip_ssim(pictures(kind)[0][:1].repeat(5, 1, 1, 1)) == 1


@pytest.mark.parametrize("of", [lambda a, b: ssim(a, b).sum(), lambda a, b: clip_ssim(torch.stack([a, b], 1)).sum()])
def test_gradients_are_those_of_differences(of):
    a, b = (x[:2, :, :9, :8].contiguous() for x in pictures("noisy ramp"))
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(3))
    a.requires_grad_()
    [gradient] = torch.autograd.grad(of(a, b), a)
    with torch.no_grad():
        step = 1e-3
        difference = (of(a + step * direction, b) - of(a - step * direction, b)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-2)


def compiled(plain, **_):
    return lambda x: plain(x) + 1


def test_many_clips_compile_once_that_is_worth_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", compiled)
    clip = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    measure = ManyClipsSsim(after=clip.numel() + 1)
    assert [float(measure(clip)) for _ in range(4)] == pytest.approx([float(clip_ssim(clip)) + x for x in (0, 0, 1, 1)])
    assert ManyClipsSsim()(clip) == clip_ssim(clip)
    assert ManyClipsSsim(after=0)(clip.to("meta")).device.type == "meta"


@pytest.mark.parametrize("fails_at", ["torch.compile", "the first clip"])
def test_many_clips_without_a_compiler_are_measured_all_the_same(monkeypatch, fails_at):
    attempts = []

    def fail(*_, **__):
        attempts.append(1)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail if fails_at == "torch.compile" else lambda *_, **__: fail)
    clip = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    measure = ManyClipsSsim(after=0)
    assert [measure(clip), measure(clip)] == [clip_ssim(clip)] * 2
    assert len(attempts) == 1, "tried again for every clip"
    with pytest.raises(LivePhotoError, match="2 frames or more, got 1"):
        measure(clip[:1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_many_clips_are_measured_by_compiled_code():
    """Not by what stands in for it where compiling fails."""
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    ManyClipsSsim(after=0)(torch.rand(2, 3, 9, 9))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled


def test_many_clips_compiled_are_measured_alike():
    clips = torch.rand(2, 4, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    measure = ManyClipsSsim(after=0)
    for clip in (*clips, 1 - 1e-3 * clips[0]):
        assert float(measure(clip)) == pytest.approx(float(clip_ssim(clip)), abs=1e-6)
    assert measure(clips[0, :1].repeat(4, 1, 1, 1)) == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), "2 frames or more, got 1"),
        ((2, 1, 3, 16, 16), "2 frames or more, got 1"),
        ((4, 3, 6, 16), "7x7 pixels or more, got 16x6"),
        ((3, 16, 16), "a clip is"),
    ],
)
def test_clips_without_a_motion(shape, message):
    with pytest.raises(LivePhotoError, match=message):
        clip_ssim(torch.zeros(shape))


def test_ssim_of_different_sizes():
    with pytest.raises(LivePhotoError, match="one shape"):
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 8))


def test_calibrated_levels_have_equal_populations():
    values = np.random.default_rng(0).beta(8, 2, 1000)
    thresholds = calibrate(values)
    assert check_thresholds(thresholds) == thresholds
    populations = np.bincount([level(value, thresholds) for value in values], minlength=11)[1:]
    assert populations.tolist() == [100] * 10


def test_still_clips_fill_level_one():
    values = [1.0] * 15 + [0.5 + 0.005 * i for i in range(85)]
    thresholds = calibrate(values)
    assert thresholds[0] == 1.0
    assert level(1.0, thresholds) == 1
    assert fractional_level(1.0, thresholds) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "got 0"),
        ([0.9, 0.8, 0.7] * 10, "got 3"),
        ([0.1 * i for i in range(1, 10)], "got 9"),
        ([*(0.01 * i for i in range(50)), math.nan], "1 of 51 clips have SSIM nan"),
        ([1.0] * 50 + [0.01 * i for i in range(50)], "the same SSIM 1.0"),
    ],
)
def test_what_cannot_be_calibrated(values, message):
    with pytest.raises(LivePhotoError, match=message):
        calibrate(values)


def test_levels_fall_as_ssim_rises():
    assert level(1.0, THRESHOLDS) == 1
    assert level(-1.0, THRESHOLDS) == 10
    for k, threshold in enumerate(THRESHOLDS, start=1):
        assert level(threshold, THRESHOLDS) == k
        assert level(threshold - 1e-9, THRESHOLDS) == k + 1


def test_fractional_level_as_documented():
    bounds = (1.0, *THRESHOLDS)
    for k in range(1, 10):
        middle = (bounds[k - 1] + bounds[k]) / 2
        assert fractional_level(middle, THRESHOLDS) == pytest.approx(k)
        assert fractional_level(bounds[k], THRESHOLDS) == pytest.approx(k + 0.5)
    beyond = bounds[9] - (bounds[8] - bounds[9]) / 4
    assert fractional_level(beyond, THRESHOLDS) == pytest.approx(9.75)
    assert fractional_level(1.0, THRESHOLDS) == 1.0
    assert fractional_level(0.1, THRESHOLDS) == 10.0


def test_fractional_level_is_continuous_monotone_and_agrees_with_level():
    ssims = np.linspace(1.0, 0.0, 20001)
    values = np.array([fractional_level(s, THRESHOLDS) for s in ssims])
    steps = np.diff(values)
    assert steps.min() >= 0
    assert steps.max() < 0.01
    inside = [s for s in ssims if min(abs(s - t) for t in THRESHOLDS) > 1e-6]
    assert all(round(fractional_level(s, THRESHOLDS)) == level(s, THRESHOLDS) for s in inside)


@pytest.mark.parametrize("thresholds", [(), THRESHOLDS[:8], THRESHOLDS[::-1], (*THRESHOLDS[:8], math.nan), None, "abc"])
def test_unusable_thresholds(thresholds):
    for function in (level, fractional_level):
        with pytest.raises(LivePhotoError, match="SSIM thresholds are nine"):
            function(0.9, thresholds)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_ssim_that_is_no_number(value):
    for function in (level, fractional_level):
        with pytest.raises(LivePhotoError, match="finite number"):
            function(value, THRESHOLDS)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), (10, 10.0), (3.5, 3.5), ("5", 5.0)])
def test_good_levels(value, expected):
    assert check_level(value) == expected


@pytest.mark.parametrize("value", [0, 11, 0.99, 10.01, math.nan, math.inf, "nan", "fast", "", None, True, [1, 2]])
def test_bad_levels_are_named(value):
    with pytest.raises(LivePhotoError, match="from 1 to 10") as error:
        check_level(value)
    assert repr(value) in str(error.value)
