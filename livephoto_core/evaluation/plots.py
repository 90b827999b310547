"""MotionBench's plots as SVG and PNG: what was seen for each motion, how the level is followed, and the wordings compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..demo.motions import MOTIONS
from .verdict import UNCLEAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LIGHT = "#20639b", "#9aa5b1"


def draw_plots(report: dict, folder: Path) -> None:
    """Write every plot that the report has data for into a new folder, each as .svg and .png; needs matplotlib."""
    folder.mkdir()
    if report["confusion"]:
        save_plot(_confusion(report), folder / "confusion")
        save_plot(_text(report), folder / "text")
    if report["level curve"]:
        save_plot(_level(report), folder / "level")


def new_plot(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: Figure, stem: Path) -> None:
    """Write a figure as STEM.svg and STEM.png; the same figure gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "motionbench"}):
        figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=120, metadata={"Software": None})


def _confusion(report: dict) -> Figure:
    totals: dict[str, dict[str, int]] = {}
    for table in report["confusion"].values():
        for motion, seen in table.items():
            for name, count in seen.items():
                row = totals.setdefault(motion, {})
                row[name] = row.get(name, 0) + count
    asked = [motion for motion in MOTIONS if motion in totals]
    names = [name for name in (*MOTIONS, UNCLEAR) if name in asked or any(name in row for row in totals.values())]
    counts = np.array([[totals[motion].get(name, 0) for name in names] for motion in asked], dtype=float)
    figure, [axes] = new_plot(2.5 + 0.3 * len(names), 2 + 0.3 * len(asked))
    axes.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(asked)), asked)
    for y, x in np.argwhere(counts > 0):
        share = counts[y, x] / counts[y].sum()
        axes.text(x, y, f"{counts[y, x]:g}", ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black")
    axes.set_xlabel("seen")
    axes.set_ylabel("asked for")
    axes.set_title(f"{report['system']}: clips by motion, all wordings", fontsize=10)
    return figure


def _text(report: dict) -> Figure:
    mark = "text, right: "
    names = [name for name in report["figures"] if name.startswith(mark)]
    figures = [report["figures"][name] for name in names]
    values = np.array([figure["value"] for figure in figures])
    reach = np.array([[f["value"] - f["low"], f["high"] - f["value"]] for f in figures]).T.clip(min=0)
    places = np.arange(len(names))
    figure, [axes] = new_plot(7, 1 + 0.3 * len(names))
    axes.barh(places, values, xerr=reach, color=INK, ecolor="black", capsize=2, height=0.6, label=report["system"])
    limits = [report["limits"][name]["value"] for name in names]
    axes.plot(limits, places, "|", color="crimson", markersize=12, label="the method on true clips")
    axes.set_yticks(places, [name.removeprefix(mark) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of clips in which the motion asked for is seen (95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, frameon=False)
    return figure


def _level(report: dict) -> Figure:
    figure, [axes] = new_plot(5, 4)
    curve, limit = report["level curve"], report["level curve of the true clips"]
    asked = [point["asked"] for point in curve]
    axes.plot([1, 10], [1, 10], ":", color=LIGHT, label="as asked for")
    axes.plot(asked, [point["mean"] for point in limit], "--", color="crimson", label="what the scenes can reach")
    axes.fill_between(asked, [p["low"] for p in curve], [p["high"] for p in curve], color=INK, alpha=0.2, label="10 % to 90 %")
    axes.plot(asked, [point["mean"] for point in curve], "o-", color=INK, label=report["system"])
    axes.set_xticks(range(1, 11))
    axes.set_yticks(range(1, 11))
    axes.set_xlabel("level asked for")
    axes.set_ylabel("level delivered")
    axes.legend(fontsize=8, frameon=False)
    return figure
