"""What the text re-weighter makes of words: their weights over a set of prompts, by kind of word (paper section 3.5, figure 3)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..demo.captions import PLACES
from ..demo.sprites import COLOURS, HELD_OUT_SHAPES, SHAPES
from ..errors import LivePhotoError
from ..files import atomic_folder
from .bench_report import REPORT, check_folder
from .measuring import WordWeights
from .plots import new_plot, save_plot
from .report import Figure, mean_figure, ratio_figure, span, to_json

PROMPTS = Path(__file__).parent / "prompts.csv"
COLUMNS = ("wording", "text")
GROUPS: dict[str, tuple[str, ...]] = {
    "motion": (
        *("appears", "bloom", "come", "comes", "explode", "exploding", "falling", "falls", "fireworks", "flicker", "flickering"),
        *("flickers", "goes", "going", "moves", "moving", "nothing", "panning", "pans", "pops", "rain", "raindrops", "raining"),
        *("ripples", "rippling", "run", "shakes", "shaking", "slides", "snow", "snowflakes", "snowing", "spinning", "spins"),
        *("stays", "still", "trembles", "turn", "turning", "turns", "zoom", "zooming", "zooms"),
    ),
    "direction": (
        *("around", "away", "clockwise", "closer", "counterclockwise", "down", "downwards", "in", "left", "out", "right", "rises"),
        *("sinks", "up", "upwards"),
    ),
    "size": ("bigger", "growing", "grows", "shrinking", "shrinks", "smaller"),
    "colour": tuple(COLOURS),
    "content": (
        *SHAPES,
        *HELD_OUT_SHAPES,
        *PLACES,
        *("camera", "everything", "light", "lights", "nowhere", "picture", "sky", "water"),
    ),
    "filler": ("a", "an", "gets", "is", "it", "of", "the", "through", "to"),
}
OTHER = "other"
TELLS_MOTION, TELLS_CONTENT = ("motion", "direction", "size"), ("colour", "content")
PLACED = {"in": ("a", "an", "the"), "out": ("of",)}
HUES = {
    **{"motion": "#20639b", "direction": "#3caea3", "size": "#7b6db0"},
    **{"colour": "#f08c2e", "content": "#d1495b", "filler": "#9aa5b1", OTHER: "#555555"},
}
PLOT_COLUMNS = 3
FILES = frozenset({REPORT, "report.md", "words.svg", "words.png"})


@dataclass(frozen=True)
class Weighed:
    """A word of the prompt number `prompt`, and its weight 0..1, the mean over its tokens and over frames.

    `lead` is the weight minus the mean of its prompt's words: some prompts weigh more than others as a whole.
    """

    prompt: int
    wording: str
    word: str
    group: str
    weight: float
    lead: float


def read_prompts(path: str | Path) -> list[tuple[str, str]]:
    """(wording, text) of each prompt of a CSV with these columns.

    Raises:
        LivePhotoError: no such file, other columns, or no prompt in it.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise LivePhotoError(f"cannot read the prompts {path} ({error}): give a CSV with the columns wording,text") from error
    found = [tuple((row.get(name) or "").strip() for name in COLUMNS) for row in rows]
    if not found or not all(text for _, text in found):
        raise LivePhotoError(f"{path} has no prompts, or a row without one: it must have the columns wording,text")
    return found


def plain(word: str) -> str:
    """A word without capitals and the marks around it."""
    return word.lower().strip(".,;:!?\"'()")


def group_of(words: Sequence[str], place: int) -> str:
    """One of GROUPS for the word at a place of a prompt, OTHER for a word that is in none.

    "in" and "out" tell a direction ("zooms in") but where they go with what follows ("in a garden", "out of nowhere").
    """
    word = plain(words[place])
    following = plain(words[place + 1]) if place + 1 < len(words) else ""
    if following in PLACED.get(word, ()):
        return "filler"
    return next((group for group, members in GROUPS.items() if word in members), OTHER)


def weigh_prompts(weights: WordWeights, prompts: Sequence[tuple[str, str]]) -> list[Weighed]:
    """Every word of every (wording, text).

    Raises:
        LivePhotoError: a text that is too long for the text encoder.
    """
    found = []
    for number, (wording, text) in enumerate(tqdm(prompts, desc="prompts")):
        pairs = weights(text)
        words, mean = [word for word, _ in pairs], float(np.mean([weight for _, weight in pairs]))
        for place, (word, weight) in enumerate(pairs):
            found.append(Weighed(number, wording, plain(word), group_of(words, place), weight, weight - mean))
    return found


def prompt_mean(found: Sequence[Weighed], value: Callable[[Weighed], float] = lambda entry: entry.weight) -> Figure:
    """Mean weight with its interval over prompts: a prompt's words are not independent."""
    prompts: dict[int, list[float]] = {}
    for entry in found:
        prompts.setdefault(entry.prompt, []).append(value(entry))
    return mean_figure([float(np.mean(values)) for values in prompts.values()])


def group_figures(found: Sequence[Weighed]) -> dict[str, Figure]:
    """The mean weight of each group, and of what tells the motion beside what tells the content: by wording, and in one prompt."""
    figures = {group: prompt_mean(part) for group in (*GROUPS, OTHER) if (part := [e for e in found if e.group == group])}
    for wording in dict.fromkeys(entry.wording for entry in found):
        for name, groups in (("tells the motion", TELLS_MOTION), ("tells the content", TELLS_CONTENT)):
            part = [e for e in found if e.wording == wording and e.group in groups]
            if part:
                figures[f"{name}, {wording} wording"] = prompt_mean(part)
    pairs = [pair for number in {entry.prompt for entry in found} if all(pair := _sides([e for e in found if e.prompt == number]))]
    means = [tuple(float(np.mean(side)) for side in pair) for pair in pairs]
    figures["motion minus content in one prompt"] = mean_figure([motion - content for motion, content in means])
    figures["motion over content, ratio"] = ratio_figure(means)
    return figures


def _sides(found: Sequence[Weighed]) -> tuple[list[float], list[float]]:
    """The weights of what tells the motion, and of what tells the content."""
    motion, content = ([e.weight for e in found if e.group in groups] for groups in (TELLS_MOTION, TELLS_CONTENT))
    return motion, content


def word_figures(found: Sequence[Weighed]) -> dict[tuple[str, str], Figure]:
    """{(word, group): mean weight}, the heaviest first."""
    words: dict[tuple[str, str], list[Weighed]] = {}
    for entry in found:
        words.setdefault((entry.word, entry.group), []).append(entry)
    figures = {key: prompt_mean(entries) for key, entries in words.items()}
    return dict(sorted(figures.items(), key=lambda item: -item[1].value))


def leads(found: Sequence[Weighed]) -> dict[tuple[str, str], float]:
    """{(word, group): how much more it weighs than the words of its prompts on average}."""
    keys = {(entry.word, entry.group) for entry in found}
    return {key: prompt_mean([e for e in found if (e.word, e.group) == key], lambda e: e.lead).value for key in keys}


def middle_of(found: Sequence[Weighed]) -> float:
    """Halfway between the mean weight of what tells the motion and that of what tells the content; nan without either."""
    sides = [prompt_mean([e for e in found if e.group in groups]).value for groups in (TELLS_MOTION, TELLS_CONTENT)]
    return sum(sides) / 2


def exceptions(words: dict[tuple[str, str], Figure], middle: float) -> dict[str, list[str]]:
    """The words on the wrong side of the middle: those that tell the motion below it, those that tell the content above it."""
    return {
        "tell the motion, weigh little": [w for (w, group), f in words.items() if group in TELLS_MOTION and f.value < middle],
        "tell the content, weigh much": [w for (w, group), f in words.items() if group in TELLS_CONTENT and f.value > middle],
    }


def words_report(found: Sequence[Weighed], settings: dict) -> dict:
    """The figures and what they were made from; plain data."""
    words, middle, lead = word_figures(found), middle_of(found), leads(found)
    return {
        "settings": settings,
        "prompts": len({entry.prompt for entry in found}),
        "groups": {name: asdict(figure) for name, figure in group_figures(found).items()},
        "middle": middle,
        "exceptions": exceptions(words, middle),
        "words": [{"word": key[0], "group": key[1], **asdict(figure), "lead": lead[key]} for key, figure in words.items()],
    }


def words_markdown(report: dict) -> str:
    """The figures as Markdown tables; intervals are over prompts."""
    lines = [f"Weights of words over {report['prompts']} prompts", ""]
    lines += ["| words | mean weight | 95 % interval | prompts |", "|---|---|---|---|"]
    lines += [f"| {name} | {_cells(figure)} |" for name, figure in report["groups"].items()]
    halfway = f"Halfway between what tells the motion and what tells the content: {report['middle']:.3f}."
    lines += ["", f"{halfway} Words on the wrong side of it:", ""]
    lines += [f"- {name}: {', '.join(words) or 'none'}" for name, words in report["exceptions"].items()]
    lines += ["", "| word | group | mean weight | 95 % interval | prompts | above its prompts' mean |", "|---|---|---|---|---|---|"]
    lines += [f"| {row['word']} | {row['group']} | {_cells(row)} | {row['lead']:+.3f} |" for row in report["words"]]
    return "\n".join(lines) + "\n"


def _cells(figure: dict) -> str:
    return f"{figure['value']:.3f} | {span(figure['low'], figure['high'])} | {figure['count']}"


def write_words(report: dict, out: str | Path) -> str:
    """Write report.json, report.md and words.svg and .png into a folder; returns the tables.

    Raises:
        LivePhotoError: a folder that holds something else, or cannot be written.
    """
    check_folder(out, FILES)
    text = words_markdown(report)
    with atomic_folder(out) as folder:
        (folder / REPORT).write_text(to_json(report), encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        save_plot(_plot(report), folder / "words")
    return text


def _plot(report: dict):
    """A bar a word with its interval, the heaviest first, in columns; the dotted line is the middle."""
    rows = report["words"]
    height = -(-len(rows) // PLOT_COLUMNS)
    figure, axes = new_plot(4 * PLOT_COLUMNS, 1 + 0.18 * height, PLOT_COLUMNS)
    for number, axis in enumerate(axes):
        part = rows[number * height : (number + 1) * height]
        values = np.array([row["value"] for row in part])
        reach = np.array([[row["value"] - row["low"], row["high"] - row["value"]] for row in part]).reshape(-1, 2).T.clip(min=0)
        colours = [HUES[row["group"]] for row in part]
        axis.barh(range(len(part)), values, xerr=reach, color=colours, ecolor="black", error_kw={"linewidth": 0.7}, height=0.7)
        axis.axvline(report["middle"], linestyle=":", color="black", linewidth=1)
        axis.set_yticks(range(len(part)), [row["word"] for row in part], fontsize=7)
        axis.set(xlim=(0, 1), ylim=(height - 0.4, -0.6), xlabel="mean weight (95 % interval over prompts)")
    from matplotlib.patches import Patch

    shown = [group for group in HUES if any(row["group"] == group for row in rows)]
    patches = [Patch(color=HUES[group], label=group) for group in shown]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(shown), fontsize=8, frameon=False)
    return figure
