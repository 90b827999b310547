"""Clips over HTTP: what they show, what is run again, progress, previews, and Cancel."""

from dataclasses import replace

import pytest
import torch

from livephoto_core.commands.inspect_file import word_weights
from livephoto_core.intensity import clip_ssim, fractional_level
from livephoto_core.inversion import inversion_steps
from livephoto_core.media import read_image
from livephoto_core.pipeline import LivePhoto, Settings

TEXT, FRAMES, STEPS, CFG, SEED, LEVEL = "the camera pans left", 8, 6, 2.0, 11, 7.5


@pytest.fixture(scope="module")
def animated(server, clip_graph, changed):
    """The graph of a clip, and its run."""
    graph = changed(
        clip_graph,
        reference={"frames": FRAMES},
        text={"text": TEXT},
        invert={"steps": inversion_steps(STEPS)},
        motion={"level": LEVEL},
        positive={"frames": FRAMES, "text": TEXT},
        negative={"frames": FRAMES},
        sample={"frames": FRAMES, "seed": SEED, "steps": STEPS, "cfg": CFG},
    )
    return graph, server.run(graph)


def test_clip_is_the_one_that_livephoto_animate_makes(server, animated, frames_of, demo):
    found = frames_of(animated[1])
    photo = read_image(server.base / "input" / "chelsea.jpg")
    settings = Settings(TEXT, intensity=LEVEL, frames=FRAMES, steps=STEPS, cfg=CFG, seed=SEED)
    expected = LivePhoto(*demo).animate(photo, settings)
    psnr = -10 * (found - expected).square().mean().log10().item()
    print(f"PSNR {psnr:.1f} dB")
    assert psnr >= 40
    other = LivePhoto(*demo).animate(photo, Settings(TEXT, intensity=LEVEL, frames=FRAMES, steps=2, cfg=CFG, seed=SEED + 1))
    assert -10 * (found - other).square().mean().log10().item() < 35


def test_guidance_that_rises_over_the_frames_is_comfyuis_own_node(server, animated, changed, frames_of, demo):
    rising = changed(
        animated[0],
        rising=("VideoLinearCFGGuidance", {"model": ["apply", 0], "min_cfg": 1.0}),
        sample={"model": ["rising", 0], "cfg": 4.0},
    )
    found, photo = frames_of(server.run(rising)), read_image(server.base / "input" / "chelsea.jpg")
    settings = Settings(TEXT, intensity=LEVEL, frames=FRAMES, steps=STEPS, cfg=4.0, min_cfg=1.0, seed=SEED)
    mean_square = (found - LivePhoto(*demo).animate(photo, settings)).square().mean()
    assert -10 * mean_square.log10().item() >= 40
    even = LivePhoto(*demo).animate(photo, replace(settings, min_cfg=None))
    assert (found - even).square().mean() > 4 * mean_square


def test_nodes_show_what_they_made(server, animated, frames_of, demo):
    _, run = animated
    photo = read_image(server.base / "input" / "chelsea.jpg")
    shown = frames_of(run, "reference")
    assert shown.shape == (1, 3, 64, 64)
    assert (shown[0].mean((1, 2)) - photo.mean((1, 2))).abs().max() < 0.1
    [bars] = server.files(run, "positive")
    words = word_weights(*demo, TEXT)
    assert read_image(bars).shape[2] > 40 * len(words)
    ssim = clip_ssim(frames_of(run))
    level = fractional_level(ssim, demo[1].config.ssim_thresholds)
    [report] = run.outputs["measure"]["text"]
    print(report)
    assert f"asked for {LEVEL:g}" in report
    assert float(report.split()[1].rstrip(",")) == pytest.approx(level, abs=0.2)
    assert float(report.split()[-1]) == pytest.approx(float(ssim), abs=1e-3)


def again(server, graph):
    """The nodes that run for a graph."""
    run = server.run(graph)
    assert run.error is None, run.error
    return set(graph) - run.cached


def test_only_what_changed_runs_again(server, animated, changed):
    graph = animated[0]
    server.run(graph)
    assert again(server, graph) == set()
    clip = {"sample", "decode", "save", "measure"}
    assert again(server, changed(graph, motion={"level": 3.0})) == {"motion", "apply", *clip}
    graph = changed(graph, motion={"level": 3.0})
    assert again(server, changed(graph, text={"text": "zooming in"})) == {"text", "positive", *clip}
    graph = changed(graph, text={"text": "zooming in"})
    assert again(server, changed(graph, sample={"seed": 1})) == clip


@pytest.fixture(scope="module")
def short(server, clip_graph, frames_of):
    """A short clip's pixels."""
    return frames_of(server.run(clip_graph))


def cancel(server, graph, node, steps):
    """Interrupt a node after its second step; returns the steps that it reported after that, and the previews before."""
    previews, later = [], []
    with server.listen() as messages:
        prompt = server.queue(graph, messages.client)
        stream = iter(messages)
        for kind, data in stream:
            assert kind != "execution_error", data
            if kind == "preview":
                previews.append(data)
            if kind == "progress" and data["node"] == node and data["value"] == 2:
                assert data["max"] == steps
                break
        server.interrupt()
        for kind, data in stream:
            if kind == "progress":
                later.append(data["value"])
            if kind == "execution_interrupted":
                assert (data["prompt_id"], data["node_id"]) == (prompt, node)
                return later, previews


def test_cancel_while_sampling(server, clip_graph, changed, short, frames_of):
    long = changed(clip_graph, sample={"frames": 32, "steps": 200}, positive={"frames": 32}, negative={"frames": 32})
    later, previews = cancel(server, long, "sample", 200)
    assert len(later) <= 1
    assert any(b"\xff\xd8\xff" in preview for preview in previews), "no JPEG among the previews"
    run = server.run(clip_graph)
    assert "sample" not in run.cached
    assert torch.equal(frames_of(run), short)


def test_cancel_while_inverting(server, clip_graph, changed, short, frames_of):
    many = changed(
        clip_graph,
        many=("RepeatImageBatch", {"image": ["photo", 0], "amount": 32}),
        look={"image": ["many", 0]},
        reference={"image": ["many", 0]},
        invert={"steps": 200},
    )
    later, _ = cancel(server, many, "invert", 200)
    assert len(later) <= 1
    run = server.run(clip_graph)
    assert {"invert", "sample"}.isdisjoint(run.cached)
    assert torch.equal(frames_of(run), short)
