"""What an ablation study is: read from a TOML or YAML file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint import read_config
from ..commands.guidance import DEMO_CFG, DEMO_MIN_CFG
from ..config import AdapterConfig, Parts
from ..errors import LivePhotoError
from ..pipeline import check_cfg
from ..training.config import RunConfig, build_config, check_measure, read_values, run_from_dict
from .ablation_arms import ARMS, TRAINED, Arm
from .suite import PLANS

# the demo's study, an example for others
DEMO_STUDY = Path(__file__).parents[1] / "training" / "recipes" / "ablations.toml"
# what every run gets from the study
GIVEN = ("base", "out", "start_adapter", "adapter", "seed")


@dataclass(frozen=True)
class Ablations:
    """A study: every arm is trained from the same base and starting adapter on the same clips, steps and seeds.

    `training`: the phases of a run, one after the other, each as in a file for `livephoto train` without GIVEN. The starting
    adapter is the checkpoint `start_adapter`, or a new one with the config `adapter`, drawn anew for each seed and alike in all
    arms. `work` is the folder of the runs. `arms` are names of ARMS. `steps`, `cfg`, `min_cfg` and `batch` are those of sampling.
    More than one of `processes` train on a CPU, and measure an arm each; one takes the GPU if there is one. `dino` and `clip` are
    folders of weights for the paper's scores.
    """

    base: str = ""
    work: str = ""
    training: tuple[dict[str, Any], ...] = ()
    start_adapter: str = ""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    seeds: tuple[int, ...] = (0, 1)
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    suite: str = "full"
    steps: int = 20
    cfg: float = DEMO_CFG
    min_cfg: float = DEMO_MIN_CFG
    batch: int = 8
    processes: int = 1
    dino: str = ""
    clip: str = ""

    @property
    def chosen(self) -> tuple[Arm, ...]:
        """The arms of this study, in the table's order."""
        return tuple(arm for arm in ARMS if arm.name in self.arms)

    @property
    def fixed(self) -> dict[str, Any]:
        """What the runs in a work folder have in common, as plain values."""
        values = {name: getattr(self, name) for name in ("base", "training", "start_adapter")}
        adapter = None if self.start_adapter else asdict(self.adapter)
        return json.loads(json.dumps({**values, "adapter": adapter}))


def load_ablations(path: str | Path) -> Ablations:
    """A study from a .toml, .yaml or .yml file, checked.

    Raises:
        LivePhotoError: no such file, an unknown name or a value that cannot be, named.
    """
    path = Path(path)
    if not path.is_file():
        raise LivePhotoError(f"there is no study {path}: name a .toml or .yaml file such as {DEMO_STUDY}")
    values = read_values(path)
    phases = values.pop("training", None)
    config = build_config(Ablations, values, str(path))
    for name, value in {"base": config.base, "work": config.work, "training": phases}.items():
        if not value:
            raise LivePhotoError(f"{path} names no {name}: see {DEMO_STUDY}")
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise LivePhotoError(f"training is {phases!r}; it must be a list of tables of names and values")
    if bool(config.start_adapter) == ("adapter" in values):
        raise LivePhotoError("a study needs start_adapter, a checkpoint, or adapter, the config of a new one; not both")
    config = replace(config, training=tuple(phases))
    _check(config)
    return config


def _check(config: Ablations) -> None:
    start = read_config(config.start_adapter) if config.start_adapter else config.adapter
    if start.parts != Parts():
        raise LivePhotoError(f"the starting adapter lacks {', '.join(start.parts.missing)}: the arms must start from a whole one")
    if unknown := sorted(set(config.arms) - {arm.name for arm in ARMS}):
        raise LivePhotoError(f"unknown arms {', '.join(unknown)}; known: {', '.join(arm.name for arm in ARMS)}")
    for name in ("seeds", "arms"):
        if not getattr(config, name):
            raise LivePhotoError(f"{name} is an empty list; name one or more")
    if config.suite not in PLANS:
        raise LivePhotoError(f"unknown suite {config.suite!r}: choose one of {', '.join(PLANS)}")
    for name in ("steps", "cfg", "batch", "processes"):
        if getattr(config, name) < 1:
            raise LivePhotoError(f"{name} is {getattr(config, name)}; use 1 or more")
    check_cfg(config.min_cfg, config.cfg)
    if config.steps >= start.schedule.timesteps:
        raise LivePhotoError(f"steps is {config.steps}; use 1 to {start.schedule.timesteps - 1}")
    for number, phase in enumerate(config.training, 1):
        if given := sorted(set(phase) & set(GIVEN)):
            raise LivePhotoError(f"training {number} has {', '.join(given)}: the study sets that for each run, leave it out")
        for seed in config.seeds:
            run = run_of(phase, config.base, config.work, "adapter", seed)
            for arm in config.chosen:
                check_measure(run.data, TRAINED[arm.trained].config(start))


def run_values(phase: dict[str, Any], base: str, out: str, start_adapter: str, seed: int) -> dict[str, Any]:
    """A phase of a run as a file for `livephoto train` has it."""
    return {**phase, "base": base, "out": out, "start_adapter": start_adapter, "seed": seed}


def run_of(phase: dict[str, Any], base: str, out: str, start_adapter: str, seed: int) -> RunConfig:
    """The same as `livephoto train` reads it.

    Raises:
        LivePhotoError: what that refuses.
    """
    return run_from_dict(run_values(phase, base, out, start_adapter, seed))
