"""Repeats the paper's ablations: trains every arm with every seed, and measures each on MotionBench.

What is finished is kept: a stopped study goes on where it was, and a longer list of arms or seeds adds to it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
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
from ..training.trainer import ADAPTER, STATE, is_finished
from .ablation_arms import TRAINED, Arm, write_variant
from .ablation_config import Ablations, run_of, run_values
from .bench_report import FIGURES, build_report
from .benching import run_suite
from .features import extractors, scorers
from .generate import BatchSampling
from .report import to_json
from .suite import Suite
from .system_livephoto import livephoto_system

STUDY = "study.json"
CHUNK = 1 << 20
START = "start.safetensors"


@dataclass(frozen=True)
class Measured:
    """An arm with one seed, and MotionBench's report on it as plain data."""

    arm: Arm
    seed: int
    report: dict[str, Any]


def run_ablations(config: Ablations, suite: Suite, device: str) -> list[Measured]:
    """Train and measure all arms of a study, those of the first seed first.

    Raises:
        LivePhotoError: the work folder is of another study, or what a training or a measuring says.
    """
    claim(config)
    trained = list(dict.fromkeys(arm.trained for arm in config.chosen))
    found = []
    for seed in config.seeds:
        files = {}
        for number, name in enumerate(trained, 1):
            print(f"seed {seed}, training {number} of {len(trained)}: {name}", flush=True)
            files[name] = train_arm(config, name, seed)
        print(f"seed {seed}: measuring {len(config.chosen)} arms", flush=True)
        reports = [_folder(config, arm.trained, seed) / f"{_file_name(arm.name)}.json" for arm in config.chosen]
        jobs = [
            (config, files[arm.trained], arm.prior, path, suite, device)
            for arm, path in zip(config.chosen, reports, strict=True)
        ]
        measured = measure_all(config.processes, jobs)
        found += [Measured(arm, seed, report) for arm, report in zip(config.chosen, measured, strict=True)]
    return found


def measure_starts(config: Ablations, suite: Suite, device: str) -> list[Measured]:
    """What the trained arms start from, measured before any training, with the first seed.

    None where the start is a new adapter, or has levels of another measure yet to learn.

    Raises:
        LivePhotoError: what measuring says.
    """
    if not config.start_adapter:
        return []
    first: dict[str, Arm] = {}
    for arm in config.chosen:
        if TRAINED[arm.trained].measure is None:
            first.setdefault(arm.trained, arm)
    arms = list(first.values())
    print(f"measuring what {len(arms)} arms start from", flush=True)
    folders = [_folder(config, arm.trained, config.seeds[0]) for arm in arms]
    jobs = [
        (config, ModelFiles(folder / START, config.base), arm.prior, folder / "start.json", suite, device)
        for arm, folder in zip(arms, folders, strict=True)
    ]
    reports = measure_all(config.processes, jobs)
    return [Measured(arm, config.seeds[0], report) for arm, report in zip(arms, reports, strict=True)]


def train_arm(config: Ablations, name: str, seed: int) -> ModelFiles:
    """One of TRAINED with a seed, trained or kept from before; returns its checkpoint and base.

    Raises:
        LivePhotoError: what the training says.
    """
    folder, variant = _folder(config, name, seed), TRAINED[name]
    start, base = folder / START, config.base
    if not start.exists():
        write_variant(_starting_adapter(config, seed), variant, start)
    for number, phase in enumerate(config.training, 1):
        out = folder / f"phase-{number}"
        run = run_of(phase, str(base), str(out), str(start), seed)
        if not is_finished(out, run.steps):
            values = run_values(phase, str(base), str(out), str(start), seed)
            data = dict(values.get("data", {}))
            if variant.measure:
                # measured anew once, for all seeds
                data["cache"] = str(Path(config.work) / f"{Path(data['path']).name}-by-{variant.measure}")
            _train({**values, "data": data}, out, config.processes)
        if not run.freeze_base:
            base = out
        start = out / ADAPTER
    return ModelFiles(start, base)


def measure(config: Ablations, files: ModelFiles, prior: float, path: Path, suite: Suite, device: str) -> dict[str, Any]:
    """MotionBench's report on a checkpoint, sampled with the paper's prior times `prior`; made, or kept at `path` from before.

    Raises:
        LivePhotoError: no such weights as `dino` or `clip` names, or what measuring says.
    """
    sampled = {name: getattr(config, name) for name in ("steps", "cfg", "min_cfg", "dino", "clip")}
    settings = {"suite": suite.fingerprint, "figures": FIGURES, **sampled}
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        return kept
    sampling = BatchSampling(config.steps, config.cfg, config.min_cfg, PRIOR_START * prior, PRIOR_END * prior)
    system = livephoto_system(files, device, sampling, config.batch)
    result = run_suite(system, suite, scorers(extractors(config.dino or None, config.clip or None, device)))
    report = build_report(system, suite, result, settings)
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(report), encoding="utf-8")
    # as it is read again: null for nan
    return json.loads(to_json(report))


def measure_all(processes: int, jobs: Sequence[tuple]) -> list[dict[str, Any]]:
    """What `measure` returns for each job's arguments; several processes have one thread each.

    Raises:
        LivePhotoError: what `measure` says, or a process was killed.
    """
    if processes == 1:
        return [measure(*job) for job in jobs]
    # plain pickles: torch's own way keeps shared memory and a descriptor for every tensor
    sent = [pickle.dumps(job) for job in jobs]
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            return list(pool.map(_measure_sent, sent))
    except BrokenProcessPool as error:
        raise LivePhotoError("a measuring process was killed, mostly for memory: set processes to 1 and run it again") from error


def _measure_sent(job: bytes) -> dict[str, Any]:
    return measure(*pickle.loads(job))


def claim(config: Ablations) -> None:
    """Make the work folder this study's, or see that it is.

    Raises:
        LivePhotoError: it holds runs of another study, or cannot be made.
    """
    work = Path(config.work)
    path = work / STUDY
    fixed = {**config.fixed, "weights to start from": _digest(config)}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name, value in fixed.items() if kept.get(name) != value]:
            raise LivePhotoError(f"{work} holds runs of another study (other {', '.join(other)}): set another work, or delete it")
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LivePhotoError(f"cannot make the work folder {work} ({error.strerror}): set work to another") from error
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(fixed, indent=1), encoding="utf-8")


def _digest(config: Ablations) -> str:
    """Of the weights that all arms start from: other weights at the same place make another study."""
    digest = hashlib.sha256()
    for given in filter(None, (config.base, config.start_adapter)):
        path = Path(given)
        # what is not there is for the training to name
        for file in filter(Path.is_file, sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]):
            with file.open("rb") as handle:
                # a base may be larger than the memory
                for part in iter(lambda: handle.read(CHUNK), b""):
                    digest.update(part)
    return digest.hexdigest()[:16]


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
