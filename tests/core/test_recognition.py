import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from livephoto_core.checkpoint import load_adapter
from livephoto_core.demo.clips import PHOTO_MOTIONS, ClipSet, DemoClip
from livephoto_core.demo.motions import SPEEDS, THING
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.scenes import render
from livephoto_core.demo.sprites import HELD_OUT_SHAPES
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation import demo_report, figures
from livephoto_core.evaluation.bench import LEAST_INTENSITY, LEAST_TRAVEL, bench_clips, travel
from livephoto_core.evaluation.generate import BatchSampling, batch_generator
from livephoto_core.evaluation.matching import blur
from livephoto_core.evaluation.measuring import Levelled, Model, measure_words, recognise
from livephoto_core.evaluation.recognise_photo import recognise_photo
from livephoto_core.evaluation.report import level_figures, measure_demo, share_figure, to_json, to_markdown
from livephoto_core.evaluation.verdict import UNCLEAR
from livephoto_core.intensity import clip_ssim
from livephoto_core.pipeline import LivePhoto, Settings

FRAMES = 16


@pytest.fixture(scope="module")
def photos():
    """Photographs that come with scikit-image."""
    from skimage import data

    found = []
    for name in ("chelsea", "coffee", "astronaut"):
        image = Image.fromarray(getattr(data, name)())
        scale = 160 / min(image.size)
        image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.LANCZOS)
        found.append(Photo(name, torch.from_numpy(np.array(image)).permute(2, 0, 1)))
    return found


def clip_of(photos, motion, index=0):
    """A clip at two thirds of the motion's fastest speed."""
    scene, _ = ClipSet(photos, HELD_OUT_SHAPES, FRAMES, seed=3).scene(index, motion)
    speed = SPEEDS[motion][1] * 2 / 3
    return DemoClip(render(scene, speed, FRAMES, 64), motion, scene, speed, False)


def roughened(frames):
    """About what a small model's decoder leaves: some blur, and noise that differs from frame to frame."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (blur(frames, 0.6) + 0.035 * noise).clamp(0, 1)


@pytest.mark.parametrize("motion", [*PHOTO_MOTIONS, *THING])
def test_every_motion_is_recognised(photos, motion):
    clip = clip_of(photos, motion)
    assert recognise(clip.frames, clip).motion == motion
    assert recognise(roughened(clip.frames), clip).motion == motion


def test_travel_is_found(photos):
    clip = clip_of(photos, "pan left")
    assert recognise(clip.frames, clip).travel == pytest.approx(clip.speed * (FRAMES - 1), abs=1.5)


@pytest.mark.parametrize("motion", ["pan right", "zoom in", "turn clockwise", "move up", "spin"])
def test_a_picture_that_stays_is_still(photos, motion):
    clip = clip_of(photos, motion)
    assert recognise(roughened(clip.frames[:1].expand(FRAMES, -1, -1, -1)), clip).motion == "still"


@pytest.mark.parametrize("motion", ["pan left", "zoom out"])
@pytest.mark.parametrize("asked", ["move right", "grow", "spin"])
def test_a_camera_that_moves_is_no_thing_that_does(photos, asked, motion):
    clip = clip_of(photos, asked)
    slid = render(replace(clip.scene, motion=motion), 0.8, FRAMES, 64)
    assert recognise(slid, clip).motion == motion
    assert recognise(roughened(slid), clip).motion == motion


@pytest.mark.parametrize("motion", ["pan right", "zoom in", "move up", "grow"])
def test_dissolving_is_no_motion(photos, motion):
    clip = clip_of(photos, motion)
    sigmas = torch.linspace(0, 5, FRAMES).tolist()
    dissolved = torch.cat([blur(clip.frames[:1], sigma) for sigma in sigmas])
    assert recognise(dissolved, clip).motion in (UNCLEAR, "still")


def test_a_fade_and_lit_mush_are_no_flicker(photos):
    first = clip_of(photos, "flicker").frames[:1]
    gains = torch.linspace(1, 0.3, FRAMES)[:, None, None, None]
    assert recognise_photo(gains * first, first[0]).motion == UNCLEAR
    mush = torch.cat([first, (blur(first, 6.0) * clip_of(photos, "flicker").frames[1:].mean((1, 2, 3), True) * 2).clamp(0, 1)])
    assert recognise_photo(mush, first[0]).motion == UNCLEAR


@pytest.mark.parametrize("motion", ["flicker", "pan left", "spin"])
def test_a_clip_that_does_not_begin_with_the_photo_is_unclear(photos, motion):
    clip = clip_of(photos, motion)
    noise = torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gains = torch.tensor([1.0, 0.5] * (FRAMES // 2))[:, None, None, None]
    assert recognise(noise, clip).motion == UNCLEAR
    assert recognise(blur(noise[:1], 2.0) * gains, clip).motion == UNCLEAR


@pytest.mark.parametrize("motion", ["pan left", "shake"])
def test_a_frozen_clip_is_still(photos, motion):
    clip = clip_of(photos, motion)
    assert recognise(clip.frames[:1].expand(FRAMES, -1, -1, -1), clip).motion == "still"


def test_sliding_too_little_is_still(photos):
    clip = clip_of(photos, "pan up")
    assert recognise(render(clip.scene, 0.05, FRAMES, 64), clip).motion == "still"


def test_another_picture_is_unclear(photos):
    pans = [clip_of(photos, "pan up", index) for index in range(8)]
    first = pans[0]
    other = next(c for c in pans if not torch.equal(c.scene.backdrop, first.scene.backdrop))
    assert recognise_photo(torch.cat([first.frames[:1], other.frames[1:]]), first.frames[0]).motion == UNCLEAR


def test_bench_clips_are_visible_and_the_same_again(photos):
    motions = ("pan left", "move down", "still")
    clips, again = (list(bench_clips(photos, HELD_OUT_SHAPES, motions, 4, seed=5)) for _ in range(2))
    assert [c.scene.motion for c in clips] == ["pan left", "move down", "still", "pan left"]
    assert all(torch.equal(a.frames, b.frames) and a.caption == b.caption for a, b in zip(clips, again, strict=True))
    for clip in clips:
        if clip.scene.motion != "still":
            assert travel(clip.scene.motion, clip.speed, FRAMES) >= LEAST_TRAVEL
            assert 1 - float(clip_ssim(clip.frames)) >= LEAST_INTENSITY


def test_bench_clips_of_a_flat_photo():
    flat = [Photo("flat", torch.full((3, 160, 160), 90, dtype=torch.uint8))]
    with pytest.raises(LivePhotoError, match="'pan left' was visible"):
        list(bench_clips(flat, HELD_OUT_SHAPES, ["pan left"], 1, seed=0, frames=4, size=32))


def test_spearman_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=30), rng.standard_normal(30)
    assert figures.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert figures.spearman([1, 2, 3], [0.1, 0.5, 0.9]) == pytest.approx(1)
    assert math.isnan(figures.spearman([1, 2], [3, 3]))
    assert figures.per_clip_spearman([1, 5], [[0.1, 0.2], [0.2, 0.1]]) == pytest.approx([1, -1])


def test_psnr_in_decibels():
    assert figures.psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20, abs=1e-4)


def test_sharpness_falls_with_blur_and_leaves_out_what_came_in(photos):
    clip = clip_of(photos, "pan left")
    assert figures.sharpness_ratio(clip.frames, clip) == pytest.approx(1)
    assert figures.sharpness_ratio(blur(clip.frames, 2.0), clip) < 0.5
    region = figures.in_view(clip)
    assert region.mean() == pytest.approx(1 - clip.speed * (FRAMES - 1) / 64, abs=0.05)
    # the camera looks left: what is new is at the left
    assert region[32, 0] == 0
    assert region[32, -2] == 1
    noisy = clip.frames + (1 - region) * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    assert figures.sharpness_ratio(noisy, clip) == pytest.approx(1, abs=0.1)


def test_fit_finds_the_best_speed(photos):
    clip = clip_of(photos, "zoom in")
    slower = render(clip.scene, 0.7 * clip.speed, FRAMES, 64)
    assert figures.fit_psnr(slower, clip) > 60
    assert figures.fit_psnr(clip.frames[:1].expand(FRAMES, -1, -1, -1), clip) < figures.fit_psnr(clip.frames, clip) - 20


def test_interval_holds_the_mean_and_narrows():
    values = np.random.default_rng(0).standard_normal(400)
    few, many = (figures.interval(n, lambda i, n=n: values[:n][i].mean()) for n in (20, 400))
    assert few[0] < values[:20].mean() < few[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert all(math.isnan(bound) for bound in figures.interval(0, lambda i: 0.0))


def test_interval_of_a_share_is_exact():
    """Values of a table of Clopper and Pearson's intervals; all alike is not certain."""
    assert figures.share_interval(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert figures.share_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert figures.share_interval(10, 10) == pytest.approx((0.6915, 1), abs=1e-4)
    assert all(math.isnan(bound) for bound in figures.share_interval(0, 0))
    assert share_figure([True, False, True, True]).value == 0.75


def standing(photos_, texts, levels, seeds):
    """The simplest model there is: the photo, again and again."""
    return photos_[:, None].expand(-1, FRAMES, -1, -1, -1)


@pytest.fixture
def standing_model():
    thresholds = [1 - k / 50 for k in range(1, 10)]
    words = lambda text: [(word, {"left": 0.8, "red": 0.2}.get(word, 0.5)) for word in text.split()]  # noqa: E731
    return Model(standing, lambda pictures: pictures, thresholds, words)


def test_a_model_that_stands_still_is_told_so(photos, standing_model):
    groups = {
        "photographs, pans": list(bench_clips(photos, HELD_OUT_SHAPES, ["pan left", "pan up"], 2, seed=0)),
        "photographs, other motions": list(bench_clips(photos, HELD_OUT_SHAPES, ["still"], 2, seed=0)),
    }
    level_clips = groups["photographs, pans"]
    report = measure_demo(standing_model, groups, level_clips, torch.rand(2, 3, 64, 64), batch=2)
    found = {name: figure["value"] for name, figure in report["figures"].items()}
    assert found["right: photographs, pans"] == 0
    assert found["right: photographs, other motions"] == 1
    assert found["right, true clips through the VAE: photographs, pans"] == 1
    assert found["level, Spearman a clip"] == 0
    assert found["first frame, dB"] == 100
    assert report["confusion"] == {"pan left": {"still": 1}, "pan up": {"still": 1}, "still": {"still": 2}}
    assert json.loads(to_json(report))["figures"]["level, Spearman pooled"]["value"] is None
    assert "| right: photographs, pans | 0.000 | 0.000 to 0.842 | 2 | at least 0.9 | no |" in to_markdown(report)


def test_level_figures_over_right_clips_alone():
    wrong = Levelled("pan left", 3, [0.5, 0.4, 0.3, 0.2, 0.1], 0.3, 0.3, right=False)
    right = [Levelled("zoom in", k, [0.1, 0.2, 0.3, 0.4, 0.5], k / 10, 0.2, right=True) for k in (1, 5, 9)]
    found = level_figures([wrong, *right])
    assert found["level, Spearman a clip"].value == pytest.approx(0.5)
    assert found["level, Spearman a clip, motion right"].value == pytest.approx(1)
    assert found["level, Spearman pooled, motion right"].value == pytest.approx(1)
    assert found["level, Spearman pooled, motion right"].count == 3


def test_motion_and_colour_words_are_told_apart():
    weights = lambda text: [(word, {"left": 0.8, "red": 0.2}.get(word, 0.5)) for word in text.split()]  # noqa: E731
    captions = ["camera pans left in a red room", "camera pans left", "a red ball appears", "camera pans left in a red room"]
    assert measure_words(weights, captions) == [(0.8, 0.2)]


@torch.no_grad()
def test_a_batch_makes_the_clips_that_animate_makes(tiny_base, tiny_adapter_file):
    model = LivePhoto(tiny_base, load_adapter(tiny_adapter_file))
    size = model.adapter.config.size
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    texts, levels, seeds = ["camera pans left", "snow falls"], [2.0, 8.0], [4, 7]
    for cfg in (1.0, 2.0):
        batch = batch_generator(model, BatchSampling(steps=2, cfg=cfg))(pictures, texts, levels, seeds)
        for i in range(2):
            settings = replace(Settings(texts[i], levels[i], steps=2, seed=seeds[i]), cfg=cfg)
            assert torch.allclose(batch[i], model.animate(pictures[i], settings), atol=1e-4)


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert demo_report.main(["--count", "0", "-o", str(tmp_path / "report.json")]) == 2
    assert demo_report.main(["--model", str(tmp_path / "none.safetensors"), "-o", str(tmp_path / "report.json")]) == 2
    assert demo_report.main(["--precision", "fp8", "-o", str(tmp_path / "report.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("demo_report: ") for line in lines)
    assert "fp8" in lines[-1]
    assert list(tmp_path.iterdir()) == []
