"""UNet calls inside the installed ComfyUI, found as tests/comfyui finds it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from livephoto_core.errors import LivePhotoError

from .systems import Case

TESTS = Path(__file__).parents[2] / "tests" / "comfyui"


def _finder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("livephoto_speed_comfyui", TESTS / "comfyui.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measure_steps(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of the UNet calls of "plain", "motion" and "livephoto".

    Raises:
        LivePhotoError: there is no ComfyUI, or it failed.
    """
    return _measure("speed", {**asdict(case), "rounds": rounds}, case.device)["steps"]


def measure_windows(steps: int, device: str) -> dict[str, list[float]]:
    """Seconds of the demo's clips of "16" frames, and of "64" in windows.

    Raises:
        LivePhotoError: there is no ComfyUI, or it failed.
    """
    return _measure("speed_windows", {"window_steps": steps}, device)["windows"]


def _measure(script: str, asked: dict[str, Any], device: str) -> dict[str, dict[str, list[float]]]:
    """What a script of tests/comfyui/inside returns, by case.

    Raises:
        LivePhotoError: there is no ComfyUI, or it failed.
    """
    finder = _finder()
    try:
        found = finder.find()
    except (finder.NoComfyUI, FileNotFoundError) as error:
        raise LivePhotoError(f"no ComfyUI: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        base = finder.make_base(out / "base")
        options = [option for option in finder.OPTIONS if option != "--cpu" or device == "cpu"]
        options += ["--base-directory", str(base), "--database-url", f"sqlite:///{out / 'comfyui.db'}"]
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["LIVEPHOTO_SPEED"] = json.dumps(asked)
        command = [found.python, TESTS / "inside" / "run.py", found.path, script, out, *options]
        ran = {"capture_output": True, "text": True, "errors": "replace", "check": False}
        done = subprocess.run(command, env=environment, cwd=base, **ran)
        if done.returncode:
            raise LivePhotoError(f"ComfyUI ended with {done.returncode} ({' '.join(done.stderr.split()[-30:])})")
        values = json.loads((out / "values.json").read_text(encoding="utf-8"))
    failed = next((found["traceback"] for found in values.values() if "traceback" in found), None)
    if failed:
        raise LivePhotoError(f"in ComfyUI: {failed.strip().splitlines()[-1]}")
    return values
