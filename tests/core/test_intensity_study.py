"""Measures of intensity on clips of known speed."""

import json

import pytest
import torch

from livephoto_core.demo.photos import Photo
from livephoto_core.demo.scenes import Scene, render
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation.intensity_measures import MEASURES, feature_change, flow_magnitude
from livephoto_core.evaluation.intensity_study import Sweep, by_motion, study_figures, sweep_scenes, write_study


@pytest.fixture(scope="module")
def photo():
    from skimage import data

    return Photo("coffee", torch.from_numpy(data.coffee()).permute(2, 0, 1)[:, ::2, ::2].contiguous())


def pan(photo, speed):
    scene = Scene(photo.pixels.float() / 255, (0.0, 0.0, 0.5), "pan right")
    return render(scene, speed, 4, 64)


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_faster_clip_measures_more(photo, name):
    found = [MEASURES[name](pan(photo, speed)) for speed in (0.0, 0.1, 0.4, 1.2)]
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found == sorted(found) and found[1] > found[0]


def test_flow_is_in_pixels(photo):
    assert flow_magnitude(pan(photo, 1.0)) == pytest.approx(1.0, abs=0.1)


def test_features_measure_their_change():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert feature_change(lambda frames: features)(torch.zeros(3, 3, 8, 8)) == pytest.approx(0.5)


def sweep(motion, speeds, **values):
    return Sweep(motion, speeds, {name: list(row) for name, row in values.items()}, dict.fromkeys(values, 0.003))


def test_agreement_within_and_across():
    # "scale" follows each scene but not the speed behind it, "speed" all of it, "nothing" none
    sweeps = [
        sweep("pan left", [1.0, 2.0, 3.0], speed=(1, 2, 3), scale=(0.1, 0.2, 0.3), nothing=(1, 1, 1)),
        sweep("zoom in", [4.0, 5.0, 6.0], speed=(4, 5, 6), scale=(0.01, 0.02, 0.03), nothing=(1, 1, 1)),
    ]
    figures = study_figures(sweeps, ["speed", "scale", "nothing"])
    found = {name: {key: figure.value for key, figure in row.items()} for name, row in figures.items()}
    assert found["speed"]["within a scene"] == found["speed"]["across camera"] == 1
    assert found["scale"]["within a scene"] == 1 and found["scale"]["across camera"] < 0
    assert found["nothing"]["within a scene"] == 0
    assert found["speed"]["ms a clip"] == pytest.approx(1)
    assert by_motion(sweeps, ["scale"]) == {"pan left": {"scale": 1}, "zoom in": {"scale": 1}}


def test_the_study(photo, tmp_path):
    measures = {name: MEASURES[name] for name in ("1 - SSIM", "MSE")}
    sweeps = sweep_scenes([photo], measures, scenes=1, speeds=3)
    assert len(sweeps) == 22
    text = write_study(sweeps, tmp_path / "out")
    assert "| 1 - SSIM | 1.000" in text and "| flicker |" in text
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["intensity.png", "intensity.svg", "report.json", "report.md"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["figures"]["MSE"]["within a scene"]["count"] == 22
    with pytest.raises(LivePhotoError):
        write_study(sweeps, tmp_path)
