"""Levels by other measures than SSIM: measured, trained, delivered and shown as the checkpoint says."""

import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from einops import repeat

from livephoto_core.checkpoint import load_adapter, read_config, save_adapter
from livephoto_core.cli import main
from livephoto_core.commands.inspect_file import describe
from livephoto_core.commands.measure import format_table, measure
from livephoto_core.config import INTENSITY_MEASURES
from livephoto_core.encoding import decode_latents
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation.scoring import delivered, strength
from livephoto_core.evaluation.systems import System, one_by_one
from livephoto_core.intensity import calibrate, clip_ssim, level
from livephoto_core.measures import MOTION_NAMES, clip_similarity, similarity
from livephoto_core.media import read_clip
from livephoto_core.media_write import write_clip
from livephoto_core.training.cache import CachedClips, EncodedClip, cache_stream, made_from_of
from livephoto_core.training.config import run_from_dict
from livephoto_core.training.run import adapter_config_of, prepare
from livephoto_core.training.trainer import fixed_settings

CLIPS = 12


def sliding(step, frames=4, side=48):
    """A picture of blocks that slides by `step` pixels a frame."""
    blocks = torch.rand(3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    picture = repeat(blocks, "c h w -> c (h y) (w x)", y=8, x=8)
    return torch.stack([picture.roll(step * f, 2) for f in range(frames)])


@pytest.mark.parametrize("name", INTENSITY_MEASURES)
def test_a_similarity_is_one_at_rest_and_falls_with_the_motion(name):
    found = [clip_similarity(sliding(step), name) for step in (0, 1, 2)]
    assert found[0] == pytest.approx(1, abs=1e-4)
    assert found[0] > found[1] > found[2]
    with pytest.raises(LivePhotoError, match="2 frames or more"):
        clip_similarity(sliding(0, frames=1), name)


def test_what_each_measure_is():
    frames = sliding(1)
    assert clip_similarity(frames, "ssim") == float(clip_ssim(frames))
    assert clip_similarity(frames, "mse") == pytest.approx(1 - float((frames.diff(dim=0) ** 2).mean()), abs=1e-6)
    inner = sliding(1, side=64)[..., 8:-8, 8:-8]
    assert clip_similarity(inner, "flow") == pytest.approx(0, abs=0.35), "one pixel a frame"


def test_flow_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.registration", None)
    with pytest.raises(LivePhotoError, match="pip install scikit-image"):
        clip_similarity(sliding(1), "flow")


@pytest.fixture
def flowing(tmp_path, tiny_adapter_file):
    """A checkpoint whose levels are of the optical flow: a fifth of a pixel a level."""
    adapter = load_adapter(tiny_adapter_file)
    ends = tuple(1 - 0.2 * k for k in range(1, 10))
    adapter.config = replace(adapter.config, ssim_thresholds=ends, intensity_measure="flow")
    path = tmp_path / "flow.safetensors"
    save_adapter(adapter, path)
    return path


def test_measure_shows_the_checkpoints_own_measure(flowing, tmp_path, capsys):
    write_clip(sliding(1, side=64), tmp_path / "a.gif")
    assert main(["measure", str(tmp_path / "a.gif"), "--model", str(flowing), "--json"]) == 0
    [result] = json.loads(capsys.readouterr().out)
    config = read_config(flowing)
    expected = clip_similarity(read_clip(tmp_path / "a.gif").frames, "flow")
    assert result["measure"] == "flow" and result["motion"] == pytest.approx(1 - expected, abs=1e-5)
    assert result["level"] == level(expected, config.ssim_thresholds) != level(result["ssim"], config.ssim_thresholds)
    header, line = format_table([result]).splitlines()
    assert MOTION_NAMES["flow"] in header and f"{result['motion']:.4g}" in line
    assert any("0.2000, 0.4000" in line and "of flow, pixels" in line for line in describe(flowing, config))


def test_the_bench_delivers_levels_by_the_systems_measure():
    ends = tuple(1 - 0.2 * k for k in range(1, 10))
    system = System("flow", one_by_one(lambda *request: sliding(1)), 48, ends, "flow")
    by_ssim = replace(system, measure="ssim")
    assert strength(sliding(1), system) == pytest.approx(1 - clip_similarity(sliding(1), "flow"))
    assert delivered(sliding(1), system) != delivered(sliding(1), by_ssim)


@pytest.fixture
def run_values(tmp_path, tiny_base_folder, tiny_adapter_file):
    """A run over a cache of twelve clips whose levels were measured by SSIM."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(12, 8, 8, generator=generator)
    other = torch.randn(CLIPS, 2, 12, 8, 8, generator=generator)
    cache_stream(
        tmp_path / "given",
        (
            EncodedClip(still + (0.1 + i / 4) * other[i], torch.randn(64, 24, generator=generator), (8, 8), float(s), "pan")
            for i, s in enumerate(np.linspace(0.3, 0.999, CLIPS))
        ),
    )

    new = asdict(read_config(tiny_adapter_file))
    for name in ("intensity_measure", "ssim_thresholds"):
        new.pop(name)

    def make(measure=None, **start):
        """Of a new adapter that says nothing of its levels, unless `start` names another."""
        said = {} if measure is None else {"intensity_measure": measure}
        return run_from_dict(
            {
                "base": str(tiny_base_folder),
                "out": str(tmp_path / f"run-{measure}"),
                **(start or {"adapter": new}),
                "data": {"kind": "cache", "path": str(tmp_path / "given"), "held_out": 1, **said},
            }
        )

    return make


def test_a_run_by_another_measure_has_that_measures_levels(run_values, tmp_path):
    run = run_values("mse")
    model, batches, *_ = prepare(run)
    given, made = CachedClips(tmp_path / "given"), CachedClips(tmp_path / "run-mse" / "cache")
    assert made.captions == given.captions and torch.equal(made.latents([3]), given.latents([3]))
    vae = prepare(run)[3].base.vae
    with torch.no_grad():
        expected = [clip_similarity(decode_latents(vae, given.latents([i])[0]), "mse") for i in range(CLIPS)]
    assert made.ssims.tolist() == pytest.approx(expected, abs=1e-6)
    assert batches.thresholds == pytest.approx(calibrate(made.ssims[1:].tolist()))
    assert model.adapter.config.intensity_measure == "mse" and model.adapter.config.intensity_from == "reconstruction"
    assert made_from_of(tmp_path / "run-mse" / "cache")["data.intensity_measure"] == "mse"


@pytest.mark.parametrize("measure", [None, "ssim"])
def test_an_adapters_levels_are_kept(run_values, tmp_path, tiny_adapter_file, measure):
    model, batches, *_ = prepare(run_values(measure, start_adapter=str(tiny_adapter_file)))
    assert batches.thresholds == read_config(tiny_adapter_file).ssim_thresholds
    assert batches.clips.ssims.tolist() == CachedClips(tmp_path / "given").ssims.tolist()
    assert model.adapter.config.intensity_measure == "ssim"


def test_the_adapters_own_measure_counts(run_values, flowing, tiny_adapter_file):
    config = asdict(read_config(tiny_adapter_file))
    flows = {**config, "intensity_measure": "flow"}
    for start in ({"start_adapter": str(flowing)}, {"adapter": flows}):
        assert adapter_config_of(run_values(**start)).intensity_measure == "flow"
        assert adapter_config_of(run_values("flow", **start)).intensity_measure == "flow"
        with pytest.raises(LivePhotoError, match=r"data.intensity_measure is 'mse', the adapter's levels are of 'flow': leave"):
            adapter_config_of(run_values("mse", **start))
    for named in ("intensity_measure", "ssim_thresholds"):
        other = "ssim_thresholds" if named == "intensity_measure" else "intensity_measure"
        with pytest.raises(LivePhotoError, match="levels are of 'ssim'"):
            adapter_config_of(run_values("mse", adapter={name: value for name, value in config.items() if name != other}))
    assert adapter_config_of(run_values()).intensity_measure == "ssim"
    assert adapter_config_of(run_values("mse")).intensity_measure == "mse"


def test_a_run_that_named_its_measure_goes_on_without_naming_it(run_values, tiny_adapter_file):
    start = {"start_adapter": str(tiny_adapter_file)}
    named, unnamed = (run_values(measure, **start) for measure in ("ssim", None))
    model, batches, *_ = prepare(named)
    assert fixed_settings(named, model, batches) == fixed_settings(unnamed, model, batches)
    assert fixed_settings(named, model, batches)["adapter.intensity_measure"] == "ssim"


@pytest.mark.parametrize("name", INTENSITY_MEASURES)
def test_pictures_that_cannot_be_compared_are_refused(name):
    frames = sliding(1)
    for a, b in ((frames[:1], frames), (frames, frames[..., :8]), (frames[0], frames[1])):
        with pytest.raises(LivePhotoError, match=r"of one shape, got .* bring the pictures to the same size"):
            similarity(a, b, name)
    with pytest.raises(LivePhotoError, match="7x7 pixels or more, got 6x48"):
        similarity(frames[..., :6], frames[..., :6], name)
    assert similarity(frames[:0], frames[:0], name).shape == (0,)


def test_a_copy_of_other_clips_is_refused(run_values, tmp_path):
    run = run_values("mse")
    cache_stream(tmp_path / "run-mse" / "cache", [EncodedClip(torch.zeros(2, 12, 8, 8), torch.zeros(64, 24), (8, 8), 0.5, "x")])
    with pytest.raises(LivePhotoError, match="holds other cached clips"):
        prepare(run)
    with pytest.raises(LivePhotoError, match="name another folder"):
        prepare(replace(run, data=replace(run.data, cache=run.data.path)))
    with pytest.raises(LivePhotoError, match="'ssim', 'mse', 'flow'"):
        run_values("dino")


def test_a_table_of_ssim_is_as_it_was(tmp_path):
    write_clip(sliding(1), tmp_path / "a.gif")
    [result] = measure([tmp_path / "a.gif"], None)
    assert format_table([result]).splitlines()[0].split() == ["clip", "frames", "stride", "SSIM", "level"]
    assert result["measure"] == "ssim" and result["motion"] == pytest.approx(1 - result["ssim"])
