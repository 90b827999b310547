import json

import pytest
import torch
from einops import repeat

from livephoto_core.commands.measure import format_json, format_table, measure
from livephoto_core.errors import LivePhotoError
from livephoto_core.intensity import clip_ssim, fractional_level, level
from livephoto_core.media import fit_image, read_clip
from livephoto_core.media_write import write_clip

THRESHOLDS = (0.99, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)


@pytest.fixture
def clips(tmp_path):
    """Three clips, from still to strong motion."""
    blocks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = repeat(blocks, "c h w -> c (h y) (w x)", y=6, x=6)
    paths = []
    for step, suffix in ((0, ".gif"), (1, ".webp"), (8, ".mp4")):
        paths.append(tmp_path / f"step{step}{suffix}")
        write_clip(torch.stack([picture.roll(step * f, 2) for f in range(6)]), paths[-1])
    return paths


def test_measures_what_the_library_measures(clips):
    for path, result in zip(clips, measure(clips, THRESHOLDS), strict=True):
        expected = clip_ssim(read_clip(path).frames).item()
        assert result["path"] == str(path)
        assert result["frames"] == 6
        assert result["ssim"] == pytest.approx(expected, abs=1e-6)
        assert result["level"] == level(expected, THRESHOLDS)
        assert result["fractional_level"] == pytest.approx(fractional_level(expected, THRESHOLDS), abs=1e-3)


def test_still_clip_is_level_one_and_motion_raises_the_level(clips):
    levels = [result["level"] for result in measure(clips, THRESHOLDS)]
    assert levels[0] == 1
    assert levels == sorted(set(levels))


def test_without_thresholds_there_are_no_levels(clips):
    results = measure(clips, None)
    assert {(r["level"], r["fractional_level"]) for r in results} == {(None, None)}
    assert format_table(results).splitlines()[1].endswith(" -")


def test_size_and_stride_of_training(clips):
    frames = fit_image(read_clip(clips[2], stride=2).frames, 16, 24, "crop")
    [result] = measure(clips[2:], None, size=(16, 24), stride=2)
    assert result["frames"] == 3
    assert result["ssim"] == pytest.approx(clip_ssim(frames).item(), abs=1e-6)


def test_json_and_table(clips):
    results = measure(clips, THRESHOLDS)
    assert json.loads(format_json(results)) == results
    header, *lines = format_table(results).splitlines()
    assert header.split() == ["clip", "frames", "stride", "SSIM", "level"]
    assert [line.split()[0] for line in lines] == [str(path) for path in clips]
    assert lines[0].split()[1:] == ["6", "1", "1.0000", "1", "(1.00)"]


def test_clips_that_cannot_be_measured(tmp_path, clips):
    write_clip(torch.rand(1, 3, 16, 16), tmp_path / "one.webp")
    write_clip(torch.rand(4, 3, 6, 16), tmp_path / "low.webp")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "folder").mkdir()
    cases = {"one.webp": "has one frame", "low.webp": "7x7", "text.mp4": "cannot open", "folder": "no pictures"}
    for name, message in {**cases, "none.mp4": "does not exist"}.items():
        with pytest.raises(LivePhotoError, match=message) as error:
            measure([clips[0], tmp_path / name], THRESHOLDS)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_unusable_thresholds(clips):
    with pytest.raises(LivePhotoError, match="SSIM thresholds are nine"):
        measure(clips, THRESHOLDS[:3])
