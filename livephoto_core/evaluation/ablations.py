"""Repeats the paper's ablations: trains every arm with every seed, and measures each on MotionBench.

What is finished is kept: a stopped study goes on where it was, and a longer list of arms or seeds adds to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import torch

from ..checkpoint import save_adapter
from ..commands.model_files import ModelFiles
from ..demo.build import launch
from ..errors import LivePhotoError
from ..files import atomic_path
from ..inversion import PRIOR_END, PRIOR_START
from ..model.adapter import LivePhotoAdapter
from ..training.run import train
from ..training.trainer import STATE
from .ablation_arms import TRAINED, Arm, write_variant
from .ablation_config import Ablations, run_of, run_values
from .bench_report import FIGURES, build_report
from .benching import run_suite
from .generate import BatchSampling
from .report import to_json
from .scoring import Scorers
from .suite import Suite
from .system_livephoto import livephoto_system

STUDY = "study.json"
RESULT = "adapter.safetensors"


@dataclass(frozen=True)
class Measured:
    """An arm with one seed, and MotionBench's report on it as plain data."""

    arm: Arm
    seed: int
    report: dict[str, Any]


def run_ablations(config: Ablations, suite: Suite, scorers: Scorers, device: str) -> list[Measured]:
    """Train and measure all arms of a study, those of the first seed first; `scorers` are those of its `dino` and `clip`.

    Raises:
        LivePhotoError: the work folder is of another study, or what a training or a measuring says.
    """
    work = Path(config.work)
    _claim(work, config)
    found = []
    for seed in config.seeds:
        for number, arm in enumerate(config.chosen, 1):
            print(f"seed {seed}, arm {number} of {len(config.chosen)}: {arm.name}", flush=True)
            files = train_arm(config, arm.trained, seed)
            found.append(Measured(arm, seed, measure_arm(config, arm, seed, files, suite, scorers, device)))
    return found


def train_arm(config: Ablations, name: str, seed: int) -> ModelFiles:
    """One of TRAINED with a seed, trained or kept from before; returns its checkpoint and base.

    Raises:
        LivePhotoError: what the training says.
    """
    folder, variant = _folder(config, name, seed), TRAINED[name]
    start, base = folder / "start.safetensors", config.base
    if not start.exists():
        write_variant(_starting_adapter(config, seed), variant, start)
    for number, phase in enumerate(config.training, 1):
        out = folder / f"phase-{number}"
        if not (out / RESULT).exists():
            values = run_values(phase, str(base), str(out), str(start), seed)
            data = dict(values.get("data", {}))
            if variant.measure:
                # measured anew once, for all seeds
                data["cache"] = str(Path(config.work) / f"{Path(data['path']).name}-by-{variant.measure}")
            _train({**values, "data": data}, out, config.processes)
        if not run_of(phase, str(base), str(out), str(start), seed).freeze_base:
            base = out
        start = out / RESULT
    return ModelFiles(start, base)


def measure_arm(
    config: Ablations, arm: Arm, seed: int, files: ModelFiles, suite: Suite, scorers: Scorers, device: str
) -> dict[str, Any]:
    """MotionBench's report on a trained arm, made or kept from before."""
    sampled = {name: getattr(config, name) for name in ("steps", "cfg", "min_cfg", "dino", "clip")}
    settings = {"suite": suite.fingerprint, "figures": FIGURES, **sampled}
    path = _folder(config, arm.trained, seed) / f"{_file_name(arm.name)}.json"
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        return kept
    shares = PRIOR_START * arm.prior, PRIOR_END * arm.prior
    sampling = BatchSampling(config.steps, config.cfg, config.min_cfg, *shares)
    system = livephoto_system(files, device, sampling, config.batch)
    result = run_suite(system, suite, scorers)
    report = build_report(system, suite, result, settings)
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(report), encoding="utf-8")
    # as it is read again: null for nan
    return json.loads(to_json(report))


def _claim(work: Path, config: Ablations) -> None:
    """Make the work folder this study's, or see that it is."""
    path = work / STUDY
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name, value in config.fixed.items() if kept.get(name) != value]:
            raise LivePhotoError(f"{work} holds runs with another {', '.join(other)}: give another work folder, or delete it")
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LivePhotoError(f"cannot make the work folder {work} ({error.strerror}): set work to another") from error
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(config.fixed, indent=1), encoding="utf-8")


def _starting_adapter(config: Ablations, seed: int) -> Path:
    """The whole adapter that all arms of a seed start from."""
    if config.start_adapter:
        return Path(config.start_adapter)
    path = Path(config.work) / f"start-seed-{seed}.safetensors"
    if not path.exists():
        torch.manual_seed(seed)
        save_adapter(LivePhotoAdapter(config.adapter), path, dtype=torch.float32)
    return path


def _train(values: dict[str, Any], out: Path, processes: int) -> None:
    """Start a training, or go on with it."""
    path = out.with_suffix(".yaml")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    resume = (out / STATE).exists()
    if processes == 1:
        train(path, resume)
        return
    try:
        launch(processes, f"{__spec__.parent.rpartition('.')[0]}.cli", "train", str(path), *(["--resume"] if resume else []))
    except CalledProcessError as error:
        raise LivePhotoError(f"the training of {path} failed (see above): mend it and run the same command again") from error


def _folder(config: Ablations, name: str, seed: int) -> Path:
    folder = Path(config.work) / _file_name(name) / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")
