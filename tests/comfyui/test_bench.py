"""MotionBench on the real server: the demo's workflow as a system."""

import json
from pathlib import Path

import pytest
import torch

from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation.level_values import level_values
from livephoto_core.evaluation.system_comfyui import comfyui_system, read_workflow
from livephoto_core.evaluation.systems import Request

FILE = Path(__file__).parents[2] / "workflows" / "api" / "livephoto_demo.json"
PLACES = ("photo=2.image", "text=5.value", "level=13.level", "seed=15.seed")


@pytest.fixture
def quick(tmp_path):
    """The demo's workflow with one step."""
    graph = json.loads(FILE.read_text(encoding="utf-8"))
    for node in ("12", "15"):
        graph[node]["inputs"]["steps"] = 1
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    return path


def test_a_workflow_makes_clips(server, quick):
    photos = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    system = comfyui_system(server.url, read_workflow(quick, PLACES, None), 64, level_values(None), seconds=200)
    requests = [Request(f"case-{i}", photo, "camera pans left", 5, 3) for i, photo in enumerate(photos)]
    first, second = system.animate(requests)
    assert first.shape == second.shape == (16, 3, 256, 256)
    assert not torch.equal(first, second), "each has its own photo"
    [again] = system.animate(requests[:1])
    assert torch.equal(first, again)


def test_what_comfyui_says_reaches_the_user(server, quick):
    system = comfyui_system(server.url, read_workflow(quick, PLACES, None), 64, [11.0] * 10, seconds=200)
    with pytest.raises(LivePhotoError, match=r"ComfyUI refused /prompt .*11"):
        system.animate([Request("case", torch.rand(3, 64, 64), "camera pans left", 5, 3)])
