"""What every other part relies on: how the package is installed and what importing it costs."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("accelerate", "av", "diffusers", "matplotlib", "scipy", "skimage", "transformers")
LIGHT_MODULES = ("model", "config", "checkpoint", "conditioning", "intensity", "schedule")


def run_python(code):
    """Run `code` in a fresh interpreter outside the repository; returns its output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_root_is_not_importable():
    """ComfyUI has a module named nodes: the root's nodes/ folder must never be able to take its place."""
    output = run_python("import sys, livephoto_core; print(*sys.path, sep='\\n')")
    assert str(ROOT) not in output.splitlines()


def test_installed_package_is_this_one():
    location = run_python("import livephoto_core; print(livephoto_core.__file__)").strip()
    assert Path(location).resolve() == ROOT / "livephoto_core" / "__init__.py"
    assert "livephoto" in {entry.name for entry in metadata.distribution("comfyui-livephoto").entry_points}


def test_light_modules_do_not_import_heavy_libraries():
    """ComfyUI imports these at start-up."""
    imports = "; ".join(f"import livephoto_core.{name}" for name in LIGHT_MODULES)
    loaded = run_python(f"import sys; {imports}; print(*(name for name in {HEAVY} if name in sys.modules))").split()
    assert loaded == []
