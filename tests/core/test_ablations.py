"""The ablation study end to end: a few arms of a tiny base trained for two steps, measured, reported, and gone on with."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from livephoto_core.checkpoint import load_adapter, read_config, save_adapter
from livephoto_core.cli import main
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.config import Parts
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation import ablations
from livephoto_core.evaluation import suite as suites
from livephoto_core.evaluation.ablation_arms import ARMS, TRAINED, Variant, write_variant
from livephoto_core.evaluation.ablation_config import DEMO_STUDY, Ablations, load_ablations
from livephoto_core.evaluation.ablation_report import POOLED, ablations_markdown, against, build_ablations, over_seeds
from livephoto_core.evaluation.ablations import Measured
from livephoto_core.evaluation.scoring import LevelRow
from livephoto_core.evaluation.suite import Plan
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.training.cache import CachedClips, EncodedClip, cache_stream

FRAMES, CLIPS = 12, 12


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations") / "cache"
    generator = torch.Generator().manual_seed(0)
    clips = (
        EncodedClip(
            torch.randn(FRAMES, 12, 16, 16, generator=generator),
            torch.randn(256, 24, generator=generator),
            (16, 16),
            float(s),
            f"camera pans {('left', 'right')[i % 2]}",
        )
        for i, s in enumerate(np.linspace(0.3, 0.999, CLIPS))
    )
    cache_stream(folder, clips)
    return folder


@pytest.fixture
def photo_folder(tmp_path):
    from skimage import data

    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(data.coffee()).resize((160, 107)).save(folder / "coffee.png")
    return folder


@pytest.fixture
def study(tmp_path, cache_folder, tiny_base_folder, tiny_adapter_file):
    """A study's file; keyword arguments replace values."""
    adapter = {**asdict(read_config(tiny_adapter_file)), "frames": FRAMES, "ssim_thresholds": ()}

    def write(**values):
        phase = {
            "data": {"kind": "cache", "path": str(cache_folder), "held_out": 1},
            "freeze_base": False,
            "steps": 2,
            "batch": 2,
            "frames_per_clip": 2,
            "learning_rate": 1e-3,
            "save_every": 1,
            "validate_every": 0,
        }
        config = {
            "base": str(tiny_base_folder),
            "work": str(tmp_path / "work"),
            "training": [phase],
            "adapter": adapter,
            "seeds": [0],
            "arms": ["full", "prior off", "reference latent only", "levels by mse"],
            "suite": "tiny",
            "steps": 1,
            "cfg": 1.0,
            **values,
        }
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
        return path

    return write


@pytest.fixture(autouse=True)
def tiny_plan(monkeypatch):
    monkeypatch.setitem(suites.PLANS, "tiny", Plan(("still",), 1, ("pan right",), 1))


def weights(path):
    return load_adapter(path).state_dict()


def test_the_study(study, cache_folder, photo_folder, tmp_path, capsys):
    out = tmp_path / "report"
    out.mkdir()
    (out / "notes.txt").touch()

    def run(path):
        return main(["bench", "ablations", str(path), "--photos", str(photo_folder), "-o", str(out), "--device", "cpu"])

    assert run(study()) == 0
    assert sorted(p.name for p in out.iterdir()) == ["ablations.png", "ablations.svg", "notes.txt", "report.json", "report.md"]
    printed = capsys.readouterr().out
    assert "| reference latent only |" in printed and "Minus full" in printed
    report = json.loads((out / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["full", "reference latent only", "prior off", "levels by mse"]
    assert str(tmp_path) not in json.dumps(report)
    for arm in report["arms"]:
        assert {"text right, wrong wording", "first frame, dB", "level, Spearman a clip"} <= set(arm["figures"])
        assert list(arm["by seed"]) == ["0"] and bool(arm["minus full"]) == (arm["name"] != "full")
    work = tmp_path / "work"
    full, bare = (work / name / "seed-0" / "phase-1" / "adapter.safetensors" for name in ("full", "reference-latent-only"))
    assert read_config(full).parts == Parts() and len(read_config(bare).parts.missing) == 4
    by_mse = read_config(work / "levels-by-mse" / "seed-0" / "phase-1" / "adapter.safetensors")
    assert by_mse.intensity_measure == "mse" and by_mse.ssim_thresholds != read_config(full).ssim_thresholds
    assert CachedClips(work / "cache-by-mse").captions == CachedClips(cache_folder).captions
    # the arms start alike and are trained apart
    start, start_bare = (weights(path.parent.parent / "start.safetensors") for path in (full, bare))
    assert all(torch.equal(value, start[name]) for name, value in start_bare.items()) and len(start_bare) < len(start)
    assert any(not torch.equal(value, start[name]) for name, value in weights(full).items())
    # without the photo's trace in the noise the clips are others
    clips = {arm: json.loads((work / "full" / "seed-0" / f"{arm}.json").read_text())["clips"] for arm in ("full", "prior-off")}
    assert clips["full"] != clips["prior-off"]
    # what is finished is kept, a new seed is added, and another study is refused
    trained, measured = full.stat().st_mtime_ns, (work / "full" / "seed-0" / "full.json").stat().st_mtime_ns
    assert run(study(seeds=[0, 1], arms=["full"])) == 0
    assert full.stat().st_mtime_ns == trained and (work / "full" / "seed-0" / "full.json").stat().st_mtime_ns == measured
    assert list(json.loads((out / "report.json").read_text())["arms"][0]["by seed"]) == ["0", "1"]
    other = weights(work / "full" / "seed-1" / "start.safetensors")
    assert any(not torch.equal(value, start[name]) for name, value in other.items())
    capsys.readouterr()
    assert run(study(base=str(tmp_path / "elsewhere"))) == 2
    assert "holds runs of another study (other base" in capsys.readouterr().err


def test_a_stopped_training_goes_on(study, tmp_path, monkeypatch):
    config = load_ablations(study(arms=["full"]))
    train = ablations.train

    def killed(path, resume):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "steps": 1}))
        train(path, resume)
        assert (path.with_suffix("") / "adapter.safetensors").exists(), "that of the steps so far"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablations, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            ablations.train_arm(config, "full", 0)
    stopped = weights(ablations.train_arm(config, "full", 0).adapter)
    unbroken = weights(ablations.train_arm(replace(config, work=str(tmp_path / "again")), "full", 0).adapter)
    assert all(torch.equal(value, unbroken[name]) for name, value in stopped.items())


def test_several_processes_measure_as_one(study, photo_folder, tmp_path):
    arms = [arm for arm in ARMS if arm.name in ("full", "prior x5")]
    suite = suites.draw_suite(suites.suite_photos(photo_folder), "tiny")
    found = {}
    for processes in (1, 2):
        config = replace(load_ablations(study(work=str(tmp_path / f"by-{processes}"))), processes=processes)
        files = ablations.train_arm(replace(config, processes=1), "full", 0)
        jobs = [(config, files, arm.prior, tmp_path / f"{arm.name} {processes}.json", suite, "cpu") for arm in arms]
        found[processes] = ablations.measure_all(config.processes, jobs)
    for one, two in zip(found[1], found[2], strict=True):
        assert one["confusion"] == two["confusion"] and one["settings"] == two["settings"]
        values = [[figure["value"] or 0 for figure in report["figures"].values()] for report in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert found[2][0]["clips"] != found[2][1]["clips"]


def test_the_demos_study_starts_from_the_shipped_demo(monkeypatch):
    """In the project's folder, which its paths are relative to."""
    monkeypatch.chdir(Path(__file__).parents[2])
    config = load_ablations(DEMO_STUDY)
    assert Path(config.base).resolve() == DEMO_FOLDER
    assert read_config(config.start_adapter) == read_config(DEMO_FOLDER / "adapter.safetensors")
    assert config.chosen == ARMS and len(config.seeds) >= 2


@pytest.mark.parametrize(
    ("options", "values", "words"),
    [
        (["--device", "tpu9"], {}, "cannot use the device 'tpu9'"),
        (["-o", "FILE/report"], {}, "cannot write"),
        ([], {"dino": "no-such-folder"}, "cannot load the model in no-such-folder"),
    ],
)
def test_mistakes_are_found_before_the_training(options, values, words, study, photo_folder, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    given = [option.replace("FILE", str(tmp_path / "FILE")) for option in options]
    usual = ["--photos", str(photo_folder), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["bench", "ablations", str(study(**values)), *usual, *given]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_report_tells_no_folders():
    names = ("image_encoder", "tokenizer", "motion_modules")
    data = {"path": "/home/someone/clips", "csv": "/home/someone/a.csv"}
    phase = {**{name: f"/home/someone/{name}" for name in names}, "data": data}
    config = Ablations("/home/someone/base", "work", (phase,), start_adapter="/home/someone/start.safetensors", seeds=(0,))
    [arm] = [arm for arm in ARMS if arm.name == "full"]
    report = build_ablations(config, [Measured(arm, 0, report_of([], []))])
    assert "someone" not in json.dumps(report)
    assert report["settings"]["training"] == [{**{name: name for name in names}, "data": {"path": "clips", "csv": "a.csv"}}]


def test_numbers_may_be_written_as_yaml_reads_them(study):
    path = study()
    path.write_text(path.read_text().replace('"cfg": 1.0', '"cfg": 2e0'))
    assert load_ablations(path).cfg == 2.0


def test_arms_are_those_of_the_paper():
    assert {arm.trained for arm in ARMS} == set(TRAINED)
    missing = {name: variant.parts.missing for name, variant in TRAINED.items()}
    assert missing["full"] == () and missing["without re-weighting"] == ("reweight",)
    assert missing["without intensity"] == ("intensity",) and missing["without content encoder"] == ("content",)
    assert {arm.name: arm.prior for arm in ARMS if arm.trained == "full"} == {
        "full": 1,
        "prior off": 0,
        "prior x0.5": 0.5,
        "prior x2": 2,
        "prior x5": 5,
    }


def test_leaving_out_what_is_missing_already(tiny_adapter_file, tmp_path):
    path = tmp_path / "bare.safetensors"
    write_variant(tiny_adapter_file, Variant(Parts(content=False)), path)
    whole = weights(tiny_adapter_file)
    assert all(torch.equal(value, whole[name]) for name, value in weights(path).items())
    with pytest.raises(LivePhotoError, match="has no content"):
        write_variant(path, Variant(Parts(reweight=False)), tmp_path / "other.safetensors")


def clip(scene, seen, wording="trained"):
    row = dict.fromkeys(("first", "identity", "adjacent_ssim"), 20.0)
    return {**row, "scene": scene, "wording": wording, "motion": "snow", "seen": seen, "scores": {}}


def levels_of(scene, sign):
    """A scene whose clips move more with every level, or with sign -1 less."""
    rising = [0.01 * (5.5 + sign * (k - 5.5)) for k in range(1, 11)]
    delivered, reachable = list(range(1, 11)), [True] * 10
    return asdict(LevelRow(scene, "pan left", rising, delivered, reachable, right=True, travel=rising))


def report_of(clips, levels):
    suite = {"version": 1, "plan": "tiny", "fingerprint": "x"}
    return {"suite": suite, "measure": "ssim", "clips": clips, "levels": levels, "figures": {}}


def test_figures_over_seeds_and_against_the_full_model():
    seen = {("full", 0): "snow snow rain", ("full", 1): "snow snow snow", ("prior off", 0): "snow rain rain"}
    arms, measured = {arm.name: arm for arm in ARMS}, []
    for (name, seed), words in seen.items():
        clips = [clip(str(scene), word) for scene, word in enumerate(words.split())]
        measured.append(Measured(arms[name], seed, report_of(clips, [levels_of("a", 1), levels_of("b", 1 - 2 * seed)])))
    starts = [Measured(arms["full"], 0, report_of([clip("0", "rain")], []))]
    report = build_ablations(Ablations("base", "work", ({},), seeds=(0, 1)), measured, starts)
    full, off = report["arms"]
    name = "text right, trained wording"
    assert full["figures"][name]["value"] == pytest.approx(2.5 / 3) and full["figures"][name]["count"] == 3
    assert full["by seed"]["0"][name] == pytest.approx(2 / 3) and full["by seed"]["1"][name] == 1
    # in the second seed one scene of two falls where it should rise
    assert [full["by seed"]["0"][figure] for figure in POOLED] == pytest.approx([1, 1])
    assert [full["by seed"]["1"][figure] for figure in POOLED] == pytest.approx([0, 0], abs=1e-6)
    assert [full["figures"][figure]["value"] for figure in POOLED] == pytest.approx([0.5, 0.5])
    assert off["minus full"][name]["value"] == pytest.approx((0 - 1 + 0) / 3)
    table = ablations_markdown(report)
    assert "| prior off | -0.333 (-1.000 to +0.000) |" in table
    assert "before any training" in table and "| full | 0.000 (too few) |" in table
    assert over_seeds([{"a": {"x": 1.0}}, {"a": {"x": 3.0, "y": 5.0}}]) == {"a": {"x": 2.0, "y": 5.0}}


@pytest.mark.parametrize(("scenes", "second", "clear"), [(6, "rain", True), (5, "rain", False), (6, "snow", False)])
def test_a_difference_is_clear_over_enough_scenes_and_in_every_seed(scenes, second, clear):
    """"Prior off" is wrong in every scene of the first seed, and of the second if that sees `second`."""
    right, wrong = ([clip(str(k), seen) for k in range(scenes)] for seen in ("snow", "rain"))
    others = [clip(str(k), second) for k in range(scenes)]
    full = {seed: report_of(right, []) for seed in (0, 1)}
    found = against(full, {0: report_of(wrong, []), 1: report_of(others, [])})["text right, trained wording"]
    assert found["high"] < 0 and found["clear"] == clear


def test_levels_of_two_measures_are_not_compared():
    reports = [{0: report_of([], [levels_of("a", 1)]) | {"measure": measure}} for measure in ("ssim", "mse")]
    assert "level, error" in against(reports[0], reports[0])
    assert list(against(*reports)) == ["level and distance, Spearman a clip"]


def test_what_the_arms_start_from(study, photo_folder, tiny_adapter_file, tmp_path):
    """Measured once for each training, in the table's order; a start that has yet to learn its levels is left out."""
    start = tmp_path / "start.safetensors"
    thresholds = tuple(0.99 - 0.01 * k for k in range(9))
    save_adapter(LivePhotoAdapter(replace(read_config(tiny_adapter_file), ssim_thresholds=thresholds, frames=FRAMES)), start)
    names = ["full", "without intensity", "prior off", "levels by mse"]
    config = load_ablations(study(adapter=None, start_adapter=str(start), arms=names))
    for name in ("full", "without intensity"):
        ablations.train_arm(config, name, 0)
    suite = suites.draw_suite(suites.suite_photos(photo_folder), "tiny")
    starts = ablations.measure_starts(config, suite, "cpu")
    assert [one.arm.name for one in starts] == ["full", "without intensity"]
    assert starts[0].report["system"] == "LivePhoto start" and starts[0].report["levels"]
    assert ablations.measure_starts(load_ablations(study()), suite, "cpu") == []


def test_other_weights_at_the_same_place_are_another_study(study, tmp_path, tiny_adapter_file):
    start = tmp_path / "start.safetensors"
    start.write_bytes(Path(tiny_adapter_file).read_bytes())
    config = load_ablations(study(adapter=None, start_adapter=str(start), arms=["full"]))
    ablations.claim(config)
    ablations.claim(config)
    save_file({**load_file(start), "more": torch.zeros(1)}, start)
    with pytest.raises(LivePhotoError, match="other weights to start from"):
        ablations.claim(config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": 1}, "unknown names colour"),
        ({"training": []}, "names no training"),
        ({"training": [{"seed": 3}]}, "leave it out"),
        ({"training": [{"steps": 0, "data": {"kind": "cache", "path": "x"}}]}, "steps is 0"),
        ({"training": [3]}, "list of tables"),
        ({"seeds": ["one"]}, r"seeds\[0\] is 'one'; it must be a whole number"),
        ({"seeds": 3}, "seeds is 3; it must be a list of whole numbers"),
        ({"seeds": []}, "seeds is an empty list"),
        ({"steps": 1000}, "steps is 1000; use 1 to 999"),
        ({"arms": ["half"]}, "unknown arms half; known: full"),
        ({"suite": "huge"}, "unknown suite"),
        ({"adapter": None}, "needs start_adapter"),
        ({"adapter": {"parts": {"content": False}}}, "lacks content"),
        ({"cfg": 0}, "cfg is 0"),
        ({"min_cfg": 2}, r"min_cfg, the first frame's guidance, must be from 1 to cfg \(1\)"),
    ],
)
def test_mistakes_are_named(study, values, words):
    with pytest.raises(LivePhotoError, match=words):
        load_ablations(study(**values))
