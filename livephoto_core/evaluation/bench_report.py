"""MotionBench's report: JSON, a Markdown table, plots and contact sheets in one folder, written whole or not at all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..errors import LivePhotoError
from ..files import atomic_folder, check_replaceable
from ..measures import MOTION_NAMES
from ..media_write import contact_sheet, write_picture
from .bench_figures import confusions, first_frame_loss, level_curve, level_figures, photo_figures, scene_mean, text_figures
from .benching import Result
from .report import GROUPS, span, to_json
from .suite import SEED, VERSION, Suite
from .systems import System

REPORT = "report.json"
FILES = frozenset({REPORT, "report.md", "plots", "sheets"})
# raise it with any figure that earlier reports lack
FIGURES = 3
LOSS, VAE = "photo, first frame, dB below the VAE", "photo, the VAE alone, dB"
# the targets for the demo model
TARGETS: dict[str, tuple[str, float]] = {
    "text, right: trained wording": ("at least", 0.95),
    "text, right: unseen wording": ("at least", 0.90),
    "text, right: wrong wording": ("at least", 0.93),
    "level, Spearman a clip": ("at least", 0.98),
    "level, Spearman pooled": ("at least", 0.92),
    "level, error": ("at most", 0.7),
    LOSS: ("at most", 0.5),
    VAE: ("at least", 30.0),
}


def build_report(system: System, suite: Suite, result: Result, settings: dict) -> dict:
    """Every figure of a run with its limit on the true clips, and what the figures were made from; plain data."""
    figures = {**text_figures(result.rows), **photo_figures(result.rows)}
    limits = {**text_figures(result.limits), **photo_figures(result.limits)}
    if system.round_trip is not None and result.rows:
        figures[LOSS] = first_frame_loss(result.rows, result.limits)
        figures[VAE] = scene_mean(result.limits, lambda row: row.first)
    if result.levels:
        figures.update(level_figures(result.levels))
        limits.update(level_figures(result.level_limits))
    return {
        "suite": {
            "version": VERSION,
            "plan": suite.plan,
            "fingerprint": suite.fingerprint,
            "first seed": SEED,
            "text cases": len(suite.text),
            "level cases": len(suite.level),
        },
        "system": system.name,
        "measure": system.measure,
        "settings": settings,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "limits": {name: asdict(figure) for name, figure in limits.items()},
        "confusion": confusions(result.rows),
        "confusion of the true clips": confusions([row for row in result.limits if row.wording == "trained"]),
        "level curve": level_curve(result.levels),
        "level curve of the true clips": level_curve(result.level_limits),
        "clips": [asdict(row) for row in result.rows],
        "levels": [asdict(row) for row in result.levels],
    }


def is_met(name: str, value: float) -> bool:
    """Whether a figure of TARGETS reaches its target."""
    kind, bound = TARGETS[name]
    return value >= bound if kind == "at least" else value <= bound


def to_markdown(report: dict) -> str:
    """The figures and the confusion as Markdown tables; "limit" is what the same figure is on the true clips."""
    suite, measure = report["suite"], report["measure"]
    of = "" if measure == "ssim" else f", levels of {MOTION_NAMES[measure]}"
    lines = [
        f"MotionBench {suite['version']}, suite `{suite['plan']}` `{suite['fingerprint']}`, system: {report['system']}{of}",
        "",
        "| figure | value | 95 % interval | scenes | limit | target | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figure in report["figures"].items():
        limit = report["limits"].get(name)
        target, met = "", ""
        if name in TARGETS:
            target, met = "{} {:g}".format(*TARGETS[name]), "yes" if is_met(name, figure["value"]) else "no"
        cells = (
            name,
            f"{figure['value']:.3f}",
            span(figure["low"], figure["high"]),
            str(figure["count"]),
            "" if limit is None else f"{limit['value']:.3f}",
            target,
            met,
        )
        lines.append(f"| {' | '.join(cells)} |")
    for wording, table in report["confusion"].items():
        lines += ["", f"| asked for, {wording} wording | seen as |", "|---|---|"]
        for motion, seen in table.items():
            lines.append(f"| {motion} | {', '.join(f'{name} {count}' for name, count in seen.items())} |")
    return "\n".join(lines) + "\n"


def check_folder(out: str | Path, files: frozenset[str] = FILES) -> None:
    """Find before the long work what would hinder a report after it, of which a folder holds `files`.

    Raises:
        LivePhotoError: a file, a folder that is neither empty nor an earlier report of the same kind, with all of its files and
            no other, or one that cannot be written.
        ModuleNotFoundError: matplotlib or scipy is not installed.
    """
    import matplotlib  # noqa: F401
    import scipy  # noqa: F401

    out = Path(out)
    check_replaceable(out)
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and found != files:
        more, fewer = sorted(found - files), sorted(files - found)
        why = f"it holds {more[0]}" if more else f"it has no {fewer[0]}"
        raise LivePhotoError(f"{out} is no earlier report of this kind, which would be replaced ({why}): give a new folder")
    if out.exists() and not out.is_dir():
        raise LivePhotoError(f"{out} is a file: give the name of a folder")


def write_report(report: dict, result: Result, out: str | Path) -> None:
    """Write report.json, report.md, plots/*.svg and *.png, and sheets/*.png into a folder, in place of an earlier report.

    Raises:
        LivePhotoError: as `check_folder`, or a folder that cannot be written.
    """
    from .plots import draw_plots

    check_folder(out)
    with atomic_folder(out) as folder:
        (folder / REPORT).write_text(to_json(report), encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
        draw_plots(report, folder / "plots")
        _write_sheets(result, folder / "sheets")


def _write_sheets(result: Result, folder: Path) -> None:
    folder.mkdir()
    for group, motions in GROUPS.items():
        shown = {motion: result.shown[motion] for motion in motions if motion in result.shown}
        if shown:
            rows = [clip for pair in shown.values() for clip in pair]
            labels = [label for motion in shown for label in (f"{motion}, true", motion)]
            write_picture(contact_sheet(rows, labels), folder / f"{group.replace(', ', '-').replace(' ', '_')}.png")
    for scene, clips in result.shown_levels.items():
        write_picture(contact_sheet(clips, [str(level) for level in range(1, len(clips) + 1)]), folder / f"{scene}.png")
