"""The real ComfyUI: scripts run inside its python, and its server.

Found by COMFYUI_PATH, else where this pack is installed in one, else at ~/comfy/ComfyUI; its python by COMFYUI_PYTHON, else its
venv. Where there is none, every test here is skipped.
"""

import functools
import importlib.util
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from livephoto_core.conditioning import ClipCondition, even_levels
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.media import read_image


def _load(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"livephoto_tests_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


comfy = _load("comfyui")
graphs = _load("graphs")


@functools.cache
def _installation():
    try:
        return comfy.find()
    except comfy.NoComfyUI as error:
        return f"NO COMFYUI, SO NOTHING OF tests/comfyui RAN: {error}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Skips here and not in a fixture, so that pytest's summary counts all tests in one line."""
    if isinstance(_installation(), str):
        pytest.skip(_installation())


@pytest.fixture(scope="session")
def comfyui():
    """The installation under test."""
    return _installation()


@pytest.fixture(scope="session")
def inside(comfyui, tmp_path_factory):
    """Runs the cases of inside/SCRIPT.py; `prepare` puts files into its base directory. Returns its results by case."""

    def run(script, *options, prepare=None, timeout=280):
        folder = tmp_path_factory.mktemp(script)
        base = comfy.make_base(folder / "base")
        try:
            if prepare is not None:
                prepare(base)
            return comfy.run_inside(comfyui, script, base, folder, *options, timeout=timeout)
        finally:
            shutil.rmtree(base / "models", ignore_errors=True)

    return run


@pytest.fixture(scope="session")
def serving(comfyui, tmp_path_factory):
    """Context of a server of its own; `prepare` puts files into its base directory, and its models are deleted with it."""

    @contextmanager
    def run(prepare):
        base = comfy.make_base(tmp_path_factory.mktemp("server"))
        try:
            prepare(base)
            running = comfy.Server(comfyui, base)
            try:
                yield running
            finally:
                running.stop()
        finally:
            shutil.rmtree(base / "models")

    return run


@pytest.fixture(scope="session")
def server(serving):
    """The server that tests share; see `Server` in comfyui.py."""
    with serving(lambda base: None) as running:
        yield running


@pytest.fixture(scope="session")
def standins():
    """Makes model files of real size; see standins.py."""
    return _load("standins")


@pytest.fixture(scope="session")
def clip_graph(server):
    """A clip of the photo that ships with the pack, all of our nodes in it, as a graph for the server; see `graphs.clip`."""
    photo = Path(comfy.ROOT) / "livephoto_core" / "demo" / "photos" / "chelsea.jpg"
    shutil.copy(photo, server.base / "input" / photo.name)
    return graphs.clip(photo.name)


@pytest.fixture(scope="session")
def changed():
    """A graph with other inputs in some of its nodes; see `graphs.changed`."""
    return graphs.changed


@pytest.fixture(scope="session")
def frames_of(server):
    """What a run's node saved, as pictures [F, 3, H, W] of 0..1."""

    def read(run, node="save"):
        assert run.error is None, run.error
        return torch.stack([read_image(path) for path in server.files(run, node)])

    return read


@pytest.fixture(scope="session")
def refused():
    """What `server.queue` raises for a graph that the server finds invalid."""
    return comfy.Refused


@pytest.fixture(scope="session")
def demo():
    """The demo model on our side: (base, adapter)."""
    from livephoto_core.base import load_base
    from livephoto_core.checkpoint import load_adapter

    folder = Path(comfy.ROOT) / "livephoto_core" / "demo" / "weights"
    return load_base(folder), load_adapter(folder / "adapter.safetensors")


@pytest.fixture(scope="session")
def replay():
    """Gives the UNet calls that a case recorded to the diffusers host; returns the largest difference to ComfyUI's output.

    An adapter of None calls the UNet alone. `text` changes the text embedding. `control` of False leaves out a ControlNet.
    """

    def run(case, unet, adapter, image_strength=1.0, motion_strength=1.0, text=lambda context: context, control=True):
        differences = []
        for number, chunks in enumerate(case["chunks"]):
            x, steps, context, out = (case[f"call{number}/{name}"] for name in ("x", "t", "context", "out"))
            clips = len(case["latent"])
            frames = len(x) // len(chunks) // clips
            levels, mark = even_levels(case["level"], clips, frames), f"call{number}/control"
            condition = ClipCondition(case["latent"], case["tokens"], tuple(case["grid"]), levels).repeated(len(chunks))
            added = [case[f"{mark}{place}"] for place in range(sum(name.startswith(mark) for name in case))] if control else []
            more = {"down_block_additional_residuals": added[:-1], "mid_block_additional_residual": added[-1]} if added else {}
            with torch.no_grad():
                if adapter is None:
                    ours = unet(x, steps, text(context), **more).sample
                else:
                    host = DiffusersHost(unet, adapter, image_strength, motion_strength)
                    with host, host.conditioned(condition):
                        ours = unet(x, steps, text(context), **more).sample
            differences.append((ours - out).abs().max().item())
        assert differences, "nothing was recorded"
        return max(differences)

    return run
