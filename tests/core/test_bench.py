"""MotionBench: the suite, what it measures, and that it fails when the level, the text or the photo is not obeyed."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from livephoto_core.cli import main
from livephoto_core.commands.model_files import ModelFiles
from livephoto_core.demo.captions import TEMPLATES, UNSEEN
from livephoto_core.demo.photos import Photo
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation import suite as suites
from livephoto_core.evaluation.bench_figures import level_figures, photo_figures, pooled_spearman, text_figures
from livephoto_core.evaluation.bench_report import REPORT, build_report, is_met, write_report
from livephoto_core.evaluation.benching import Result, asked_level, run_suite
from livephoto_core.evaluation.figures import psnr
from livephoto_core.evaluation.generate import BatchSampling
from livephoto_core.evaluation.identity import identity
from livephoto_core.evaluation.matching import blur
from livephoto_core.evaluation.scoring import LevelRow, delivered
from livephoto_core.evaluation.suite import FRAMES, PLANS, SIZE, THRESHOLDS, Plan, draw_suite, first_frame
from livephoto_core.evaluation.system_livephoto import livephoto_system
from livephoto_core.evaluation.systems import Request, checked, function_system, still_system
from livephoto_core.evaluation.truth import band_middles, climb, motion_of, truth_system
from livephoto_core.intensity import level

PHOTOS = ("chelsea", "coffee", "astronaut")


@pytest.fixture(scope="module")
def photos():
    """Photographs that come with scikit-image."""
    from skimage import data

    found = []
    for name in PHOTOS:
        image = Image.fromarray(getattr(data, name)())
        scale = 192 / min(image.size)
        image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.LANCZOS)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
        found.append(Photo(name, pixels.permute(2, 0, 1).contiguous()))
    return found


@pytest.fixture(scope="module")
def suite(photos):
    return draw_suite(photos, "reduced")


@pytest.fixture(scope="module")
def text_alone(suite):
    """The reduced suite's text cases in the trained wording."""
    return replace(suite, text=tuple(case for case in suite.text if case.wording == "trained"), level=())


@pytest.fixture(scope="module")
def level_alone(suite):
    return replace(suite, text=())


@pytest.fixture(scope="module")
def perfect(suite):
    """The reduced suite made by the renderer that made its true clips, and the figures of that."""
    return run_suite(truth_system(suite), suite)


def values(figures):
    return {name: figure.value for name, figure in figures.items()}


def broken(suite, change):
    """The perfect system, handed other requests than it was asked to."""
    perfect = truth_system(suite)
    return replace(perfect, animate=lambda requests: perfect.animate([change(request) for request in requests]))


def test_the_suite_is_the_same_again(photos, suite):
    again = draw_suite(photos, "reduced")
    assert again.fingerprint == suite.fingerprint
    assert [(c.name, c.text, c.level, c.seed) for c in again.text] == [(c.name, c.text, c.level, c.seed) for c in suite.text]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(again.scenes.values(), suite.scenes.values(), strict=True))
    assert draw_suite(photos[:2], "reduced").fingerprint != suite.fingerprint
    cases = (*suite.text, *suite.level)
    assert len({case.name for case in cases}) == len(cases) == 7 * 3 + 3 * 10
    with pytest.raises(LivePhotoError, match="full, medium, short, reduced"):
        draw_suite(photos, "huge")


def test_the_full_plan_has_every_motion_and_level():
    full = PLANS["full"]
    assert len(full.text_motions) == 23 and len(full.level_motions) == 22


def test_wordings(suite):
    by_wording = {wording: [c for c in suite.text if c.wording == wording] for wording in suites.WORDINGS}
    for case in suite.text:
        assert motion_of(case.text) == case.motion
    for case in by_wording["wrong"]:
        words = case.text.split()
        if case.clip.scene.thing is not None:
            assert not {case.clip.scene.thing.colour, case.clip.scene.thing.name} & set(words)
        else:
            assert " in a " in case.text
    for trained, unseen in zip(by_wording["trained"], by_wording["unseen"], strict=True):
        assert trained.scene == unseen.scene and trained.text.partition(" in a ")[0] != unseen.text.partition(" in a ")[0]


def test_the_renderer_reads_every_phrasing():
    for vocabulary in (TEMPLATES, UNSEEN):
        for motion, phrasings in vocabulary.items():
            for phrasing in phrasings:
                assert motion_of(phrasing.format(thing="red rocket", ball="blue")) == motion
    with pytest.raises(LivePhotoError, match="no phrasing"):
        motion_of("a dog runs")


def test_a_larger_photo_shows_the_same(suite):
    for clip in suite.scenes.values():
        large = first_frame(clip, 4 * SIZE)
        small = torch.nn.functional.interpolate(large[None], (SIZE, SIZE), mode="area")[0]
        assert psnr(small, clip.frames[0]) > 25


def test_the_suites_levels_are_where_its_clips_are():
    middles = band_middles(THRESHOLDS)
    assert [level(1 - middle, THRESHOLDS) for middle in middles] == list(range(1, 11))
    assert middles[0] > 0.004 and middles[-1] < 0.2


def test_the_perfect_system_is_near_perfect(perfect):
    found = {**values(text_figures(perfect.rows)), **values(photo_figures(perfect.rows)), **values(level_figures(perfect.levels))}
    limits = {**values(text_figures(perfect.limits)), **values(level_figures(perfect.level_limits))}
    for figures in (found, limits):
        assert all(value == 1 for name, value in figures.items() if name.startswith("text, right"))
        assert figures["level, Spearman a clip"] > 0.98
        assert figures["level, Spearman pooled"] > 0.92
        assert figures["level, error"] < 0.2
        assert figures["level, steps that rise"] > 0.95
    assert found["level and distance, Spearman a clip"] > 0.98
    assert found["photo, first frame, dB"] == 100
    assert found["photo, identity over time, dB"] > 30


ORDERS = {"constant": [5] * 10, "shuffled": [7, 2, 9, 4, 1, 10, 3, 6, 8, 5]}


@pytest.mark.parametrize("name", list(ORDERS))
def test_a_broken_level_is_seen(level_alone, name):
    order = ORDERS[name]
    result = run_suite(broken(level_alone, lambda request: replace(request, level=order[request.level - 1])), level_alone)
    found = values(level_figures(result.levels))
    assert found["level, Spearman a clip"] < 0.3
    assert found["level, Spearman pooled"] < 0.3
    assert found["level and distance, Spearman a clip"] < 0.3
    assert found["level, error"] > 1.5
    assert found["level, steps that rise"] < 0.6
    assert found["level, clips whose every step rises"] == 0


def test_a_broken_text_is_seen(text_alone):
    texts = [case.text for case in text_alone.text]
    others = dict(zip(texts, texts[1:] + texts[:1], strict=True))
    result = run_suite(broken(text_alone, lambda request: replace(request, text=others[request.text])), text_alone)
    assert values(text_figures(result.rows))["text, right: all"] < 0.2
    assert values(text_figures(result.limits))["text, right: all"] == 1
    assert values(photo_figures(result.rows))["photo, first frame, dB"] == 100


def test_a_broken_reference_is_seen(text_alone, perfect):
    photos = {case.name: case.clip.frames[0] for case in text_alone.text}
    others = dict(zip(photos, [*list(photos.values())[1:], next(iter(photos.values()))], strict=True))
    result = run_suite(broken(text_alone, lambda request: replace(request, photo=others[request.name])), text_alone)
    found, whole = values(photo_figures(result.rows)), values(photo_figures(perfect.rows))
    assert found["photo, first frame, dB"] < 20
    assert found["photo, identity over time, dB"] < whole["photo, identity over time, dB"] - 10
    assert values(text_figures(result.rows))["text, right: all"] < 0.2


def test_a_photo_that_stays_is_told_so(level_alone):
    result = run_suite(still_system(), level_alone)
    found = values(level_figures(result.levels))
    assert found["level, Spearman a clip"] == 0
    assert found["level, steps that rise"] == 0
    assert found["level, error"] > 3
    assert not any(row.right for row in result.levels)


@pytest.fixture(scope="module")
def demo():
    return livephoto_system(ModelFiles(), "cpu", BatchSampling(steps=6, cfg=1.0), batch=4)


@pytest.fixture(scope="module")
def asked_of_demo(photos):
    """Motions that the shipped model has learnt well, each in the trained wording, and one of them at every level."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suites.PLANS, "sure", Plan(("pan left", "pan right", "zoom in", "turn clockwise"), 1, ("pan right",), 1))
        suite = draw_suite(photos, "sure")
    return replace(suite, text=tuple(case for case in suite.text if case.wording == "trained"))


@pytest.fixture(scope="module")
def made_by_demo(demo, asked_of_demo):
    result = run_suite(demo, asked_of_demo)
    limits, levels = values(photo_figures(result.limits)), values(level_figures(result.levels))
    return {**values(text_figures(result.rows)), **values(photo_figures(result.rows)), **levels}, limits


def test_the_shipped_model_follows_text_level_and_photo(demo, asked_of_demo, made_by_demo):
    found, limits = made_by_demo
    assert found["text, right: all"] >= 0.75
    assert found["level, Spearman a clip"] > 0.8
    assert found["photo, first frame, dB"] > limits["photo, first frame, dB"] - 4
    assert 1 <= asked_level(asked_of_demo.text[0], demo) <= 10


def test_a_model_deaf_to_the_text_is_seen(demo, asked_of_demo):
    same = asked_of_demo.text[0].text
    deaf = replace(demo, animate=lambda requests: demo.animate([replace(request, text=same) for request in requests]))
    result = run_suite(deaf, replace(asked_of_demo, level=()))
    assert values(text_figures(result.rows))["text, right: all"] <= 0.25


def test_a_model_deaf_to_the_level_is_seen(demo, asked_of_demo):
    one = asked_of_demo.level[0]
    [clip] = demo.animate([Request(one.name, first_frame(one.clip, demo.size), one.text, 5, one.seed)])
    deaf = replace(demo, animate=lambda requests: [clip] * len(requests))
    found = values(level_figures(run_suite(deaf, replace(asked_of_demo, text=())).levels))
    assert found["level, Spearman a clip"] == 0 and found["level, error"] > 1.5


def test_a_model_blind_to_the_photo_is_seen(demo, asked_of_demo, made_by_demo):
    another = torch.flip(first_frame(asked_of_demo.text[0].clip, demo.size), (0, 1))
    blind = replace(demo, animate=lambda requests: demo.animate([replace(request, photo=another) for request in requests]))
    found = values(photo_figures(run_suite(blind, replace(asked_of_demo, level=())).rows))
    assert found["photo, first frame, dB"] < made_by_demo[0]["photo, first frame, dB"] - 8
    assert found["photo, identity over time, dB"] < made_by_demo[0]["photo, identity over time, dB"] - 3


def test_identity_falls_when_the_thing_dissolves(suite):
    for motion in ("move right", "pan left"):
        clip = next(c.clip for c in suite.text if c.motion == motion)
        sigmas = torch.linspace(0, 3, FRAMES).tolist()
        dissolving = torch.cat([blur(frame[None], sigma) for frame, sigma in zip(clip.frames, sigmas, strict=True)])
        true, worse = identity(clip.frames, clip), identity(dissolving, clip)
        assert len(true) == FRAMES - 1 and min(true) > 28
        assert worse[-1] < true[-1] - 6
        # where it stays, the photo is kept too
        assert min(identity(clip.frames[:1].expand(FRAMES, -1, -1, -1), clip)) > 40


def test_a_scenes_ladder(suite):
    scene = suite.level[0].clip.scene
    ladder = climb(scene, SIZE, lambda frames: frames)
    assert ladder.speed(ladder.dissimilarities[0] / 10) == pytest.approx(ladder.speeds[0])
    assert ladder.speeds[2] < ladder.speed((ladder.dissimilarities[2] * ladder.dissimilarities[3]) ** 0.5) < ladder.speeds[3]
    assert ladder.reached(1.0) == ladder.dissimilarities[-1]


def test_levels_out_of_reach_do_not_count_as_errors():
    rising = [0.01 * k for k in range(1, 11)]
    row = LevelRow("s", "snow", rising, [4, 4, 4, 4, 5, 6, 7, 8, 9, 10], [False] * 3 + [True] * 7, right=False)
    found = values(level_figures([row]))
    assert found["level, error"] == 0
    assert found["level, error, out of the scene's reach too"] == pytest.approx(0.6)
    assert found["level, delivered minus requested"] == 0
    assert found["level, steps that rise"] == 1
    flat = replace(row, dissimilarity=[0.1] * 10, delivered=[3] * 10)
    assert values(level_figures([flat]))["level, delivered minus requested"] == pytest.approx(-4)


def test_distances_count_where_the_motion_is_seen():
    rising, gone = [0.01 * k for k in range(1, 11)], [math.nan] * 7 + [3.0, 5.0, 4.0]
    row = LevelRow("s", "pan left", rising, list(range(1, 11)), [True] * 10, right=True, travel=gone)
    found = values(level_figures([row, replace(row, motion="snow"), replace(row, travel=[math.nan] * 10)]))
    assert found["level and distance, Spearman a clip"] == found["level and distance, Spearman pooled"] == pytest.approx(0.5)


def test_pooled_spearman_is_drawn_scene_by_scene():
    figure = pooled_spearman([((1, 2, 3), (1.0, 2.0, 3.0)), ((1, 2, 3), (11.0, 12.0, 13.0))])
    assert figure.count == 2 and figure.value < 1
    assert figure.high == pytest.approx(1), "a draw of one scene twice agrees wholly"


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (torch.zeros(4, 3, 8, 8), "has 4 frames"),
        (torch.zeros(16, 8, 8), "must be a tensor"),
        (torch.full((16, 3, 8, 8), torch.nan), "not finite"),
    ],
)
def test_clips_that_cannot_be_measured(frames, said):
    with pytest.raises(LivePhotoError, match=said):
        checked(frames, "a case")


def test_a_function_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text("def animate(photo, text, level, seed):\n    return photo.repeat(16, 1, 1, 1)\n")
    system = function_system(f"{tmp_path}/mine.py:animate", 128)
    [clip] = system.animate([Request("a", torch.rand(3, 128, 128), "snow falls", 3, 0)])
    assert system.name == "mine:animate" and clip.shape == (16, 3, 128, 128)
    for place in (f"{tmp_path}/mine.py:other", f"{tmp_path}/none.py:animate", "animate"):
        with pytest.raises(LivePhotoError):
            function_system(place, 64)


def test_levels_are_asked_for_and_reached_as_training_measured_them(photos, monkeypatch):
    """A VAE that blurs takes motion away: what is asked for by the frames comes out lower, and the limit says so."""
    monkeypatch.setitem(suites.PLANS, "tiny", Plan(("pan right",), 1, ("pan right",), 1))
    suite = draw_suite(photos, "tiny")

    case, frames = suite.text[0], suite.text[0].clip.frames

    def blurred(pictures):
        return blur(pictures, 1.5)

    of_frames = replace(still_system(), round_trip=blurred)
    of_restored = replace(of_frames, levels_from="reconstruction")
    assert asked_level(case, of_frames) == delivered(frames, of_frames)
    assert asked_level(case, of_restored) == delivered(blurred(frames), of_restored) < asked_level(case, of_frames)
    by_frames, by_restored = (run_suite(system, suite) for system in (of_frames, of_restored))
    assert by_frames.limits[0].level == asked_level(case, of_frames) > by_frames.limits[0].delivered
    asked = range(1, 11)
    [lower], [same] = by_frames.level_limits, by_restored.level_limits
    assert all(given == level for given, level, can in zip(same.delivered, asked, same.reachable, strict=True) if can)
    lost = [level - given for given, level, can in zip(lower.delivered, asked, lower.reachable, strict=True) if can]
    assert sum(lost) > 0 and min(lost) >= 0


def test_the_report(suite, perfect, tmp_path):
    out = tmp_path / "report"
    report = build_report(truth_system(suite), suite, perfect, {"seed": 0})
    # an earlier report is replaced whole
    for folder in ("plots", "sheets"):
        (out / folder).mkdir(parents=True)
    for file in (REPORT, "report.md", "plots/old.png"):
        (out / file).write_text("{}")
    write_report(report, perfect, out)
    assert not (out / "plots" / "old.png").exists()
    plots = [f"{name}.{suffix}" for name in ("confusion", "level", "text") for suffix in ("png", "svg")]
    assert sorted(path.name for path in (out / "plots").iterdir()) == plots
    assert len(list((out / "sheets").iterdir())) == 7 + 3
    read = json.loads((out / "report.json").read_text())
    counts = {"text cases": 21, "level cases": 30}
    assert read["suite"] == {"version": 1, "plan": "reduced", "fingerprint": suite.fingerprint, "first seed": 1000, **counts}
    assert read["confusion"]["unseen"]["snow"] == {"snow": 1}
    assert [point["asked"] for point in read["level curve"]] == list(range(1, 11))
    assert all(point["mean low"] <= point["mean"] <= point["mean high"] for point in read["level curve"])
    assert len(read["clips"]) == 21 and len(read["levels"]) == 3
    table = (out / "report.md").read_text()
    assert "| text, right: unseen wording | 1.000 | 0.590 to 1.000 | 7 | 1.000 | at least 0.9 | yes |" in table
    assert is_met("level, error", 0.7) and not is_met("level, error", 0.8)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("other", [{"thesis.txt"}, {"report.md", "words.svg", "words.png"}, set()], ids=["text", "words", "alone"])
def test_a_report_of_another_kind_is_not_replaced(perfect, other, tmp_path):
    for name in {REPORT, *other}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(LivePhotoError, match=r"no earlier report of this kind.*give a new folder"):
        write_report({}, perfect, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, *other}


def test_nothing_of_the_users_is_replaced(perfect, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for out in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(LivePhotoError):
            write_report({}, perfect, out)
    with pytest.raises(KeyError):
        write_report({}, Result([], [], [], []), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.fixture
def photo_folder(tmp_path, photos):
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in photos:
        Image.fromarray(photo.pixels.permute(1, 2, 0).numpy()).save(folder / f"{photo.name}.png")
    return folder


def test_the_command(monkeypatch, photo_folder, tmp_path, capsys):
    monkeypatch.setitem(suites.PLANS, "tiny", Plan(("still",), 1, ("pan right",), 1))
    common = ["bench", "run", "--suite", "tiny", "--photos", str(photo_folder), "-o", str(tmp_path / "out")]
    assert main([*common, "--system", "still"]) == 0
    printed = capsys.readouterr().out
    assert "| text, right: all | 1.000 | 0.025 to 1.000 | 1 | 1.000 |  |  |" in printed
    assert printed.strip() == (tmp_path / "out" / "report.md").read_text().strip()
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert settings["photos"] == "photos" and settings["system"] == "still"
    assert not {"steps", "model", "precision", "workflow"} & settings.keys(), "what says nothing to it"


def test_the_command_in_half_precision(monkeypatch, photo_folder, tmp_path):
    monkeypatch.setitem(suites.PLANS, "tiny", Plan(("pan right",), 1, (), 1))
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        common = ["bench", "run", "--suite", "tiny", "--photos", str(photo_folder), "--steps", "2"]
        assert main([*common, "--precision", precision, "-o", str(out)]) == 0
        found[precision] = json.loads((out / "report.json").read_text())
        assert found[precision]["settings"]["precision"] == precision
        assert "memory_fix" not in found[precision]["settings"]
    # the settings aside, which tell the two apart anyway
    assert {**found["fp32"], "settings": {}} != {**found["bf16"], "settings": {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--suite", "none"], "unknown suite 'none'"),
        (["run", "--system", "folder"], "needs --folder"),
        (["run", "--system", "comfyui"], "needs --workflow"),
        (["run", "--system", "function", "--function", "x", "--size", "8"], "--size must be"),
        (["run", "--system", "function", "--function", "notes.txt:animate"], "no Python file"),
        (["run", "--prior", "much"], "--prior takes"),
        (["run", "--size", "128"], "--size is for --system diffusers, comfyui, function, not livephoto"),
        (["run", "--system", "still", "--steps", "7"], "--steps is for --system livephoto, not still"),
        (["run", "--system", "truth", "--folder", "x"], "--folder is for --system diffusers, folder, not truth"),
        (["run", "--system", "diffusers", "--folder", "x", "--level-values", "1,2"], "--level-values needs --level-input"),
        (["run", "--steps", "0"], "steps must be"),
        (["run", "--precision", "fp8"], "choose one of fp32, bf16"),
        (["run", "--cfg", "0.5"], "cfg must be"),
        (["run", "--system", "diffusers", "--inputs", "[1]", "--folder", "."], "--inputs takes JSON"),
        (["run", "--system", "diffusers", "--folder", "."], "is no diffusers pipeline"),
        (["run", "--system", "diffusers", "--folder", ".", "--level-input", "x", "--level-values", "1,2"], "10"),
        (["run", "--system", "comfyui", "--workflow", "x", "--level-values", "1,2"], "--level-values needs --set level="),
        (["run", "--dino", "nowhere"], "cannot load the model in nowhere"),
        (["run", "--device", "tpu9"], "cannot use the device 'tpu9'"),
        (["run", "--system", "still", "-o", "notes.txt/report"], "cannot write"),
        (["run", "--system", "still", "-o", "."], "name a new folder"),
        (["run", "--system", "still", "-o", "x" * 300], "shorter"),
        (["export", "--size", "2"], "--size must be"),
        (["intensity", "--speeds", "1"], "--speeds 3 or more"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, arguments, said, tmp_path, photo_folder, capsys):
    monkeypatch.setitem(suites.PLANS, "full", Plan(("still",), 1, ("pan right",), 1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    arguments = arguments if "-o" in arguments else [*arguments, "-o", "out"]
    assert main(["bench", *arguments, "--photos", str(photo_folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "photos"]


def test_a_broken_picture_is_named(photo_folder, tmp_path, capsys):
    (photo_folder / "broken.png").write_bytes((photo_folder / "coffee.png").read_bytes()[:500])
    assert main(["bench", "run", "--system", "still", "--photos", str(photo_folder), "-o", str(tmp_path / "out")]) == 2
    assert "broken.png" in capsys.readouterr().err
