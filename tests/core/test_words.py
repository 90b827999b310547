"""The weights of words over a set of prompts."""

import json

import pytest

from livephoto_core.cli import main
from livephoto_core.config import Parts
from livephoto_core.demo.motions import MOTIONS
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation.ablation_arms import Variant, write_variant
from livephoto_core.evaluation.truth import motion_of
from livephoto_core.evaluation.words import (
    GROUPS,
    OTHER,
    PROMPTS,
    group_of,
    read_prompts,
    weigh_prompts,
    words_markdown,
    words_report,
)


def test_the_prompts_cover_the_vocabulary():
    prompts = read_prompts(PROMPTS)
    assert len(set(prompts)) == len(prompts) >= 60
    for wording in ("trained", "unseen", "wrong"):
        assert {motion_of(text) for found, text in prompts if found == wording} == set(MOTIONS)
    words = [(text.split(), place) for _, text in prompts for place in range(len(text.split()))]
    assert {group_of(*word) for word in words} == set(GROUPS)
    members = [word for group in GROUPS.values() for word in group]
    assert len(members) == len(set(members))


def test_small_words_are_grouped_by_what_follows():
    groups = [group_of(["the", "camera", "zooms", "in", "in", "a", "red", "garden"], place) for place in range(8)]
    assert groups == ["filler", "content", "motion", "direction", "filler", "filler", "colour", "content"]
    assert group_of(["comes", "out", "of"], 1) == "filler" and group_of(["zooms", "Out."], 1) == "direction"
    assert group_of(["dinosaur"], 0) == OTHER


def weights(text):
    """Motion weighs 0.8 and content 0.2, but for two words; the second prompt 0.1 more."""
    values = {"moves": 0.8, "left": 0.8, "grows": 0.1, "red": 0.2, "star": 0.2, "box": 0.9, "the": 0.5}
    return [(word, values[word] + 0.1 * ("box" in text)) for word in text.split()]


def test_figures_and_exceptions():
    found = weigh_prompts(weights, [("trained", "the red star moves left"), ("unseen", "the box moves"), ("unseen", "star grows")])
    report = words_report(found, {})
    groups = {name: figure["value"] for name, figure in report["groups"].items()}
    assert groups["motion"] == pytest.approx(0.85) and groups["size"] == pytest.approx(0.1)
    assert report["groups"]["motion"]["count"] == 2 and OTHER not in groups
    assert groups["motion minus content in one prompt"] == pytest.approx((0.6 - 0.1 - 0.1) / 3)
    assert groups["tells the motion, trained wording"] == pytest.approx(0.8)
    middle = ((0.8 + 0.9 + 0.1) / 3 + (0.2 + 1.0 + 0.2) / 3) / 2
    assert report["middle"] == pytest.approx(middle)
    assert report["exceptions"] == {"tell the motion, weigh little": ["grows"], "tell the content, weigh much": ["box"]}
    rows = {row["word"]: row for row in report["words"]}
    assert next(iter(rows)) == "box" and rows["moves"]["value"] == pytest.approx(0.85)
    assert rows["grows"]["lead"] == pytest.approx(0.1 - 0.15)
    assert "| grows | size | 0.100 |" in words_markdown(report)


def test_the_command_on_the_shipped_model(tmp_path, capsys):
    assert main(["bench", "words", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "out" / "report.md").read_text().strip()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.md", "words.png", "words.svg"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["prompts"] == len(read_prompts(PROMPTS)) and report["settings"]["model"] == "demo"
    # a word of one prompt has no interval
    assert all((row["low"] is None) == (row["count"] == 1) for row in report["words"])
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in report["words"] if row["count"] > 1)


def test_mistakes_are_one_line(tmp_path, tiny_adapter_file, tiny_base_folder, capsys):
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    write_variant(tiny_adapter_file, Variant(Parts(reweight=False)), tmp_path / "even.safetensors")
    for arguments, words in (
        (["--prompts", str(tmp_path / "missing.csv")], "cannot read the prompts"),
        (["--prompts", str(tmp_path / "none.csv")], "wording,text"),
        (["--model", str(tmp_path / "even.safetensors"), "--base", str(tiny_base_folder)], "without text re-weighting"),
    ):
        assert main(["bench", "words", "-o", str(tmp_path / "out"), *arguments]) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("livephoto:")]
        assert words in line
    with pytest.raises(LivePhotoError):
        read_prompts(tmp_path)
