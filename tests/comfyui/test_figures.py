"""How clips through ComfyUI follow direction and level, beside the core's own clips of the same photos, texts, levels and seeds."""

import numpy as np
import pytest
import torch
from PIL import Image

from livephoto_core.demo.motions import CAMERA, THING
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import HELD_OUT_SHAPES
from livephoto_core.evaluation.bench import bench_clips
from livephoto_core.evaluation.figures import dissimilarity, per_clip_spearman
from livephoto_core.evaluation.generate import BatchSampling, batch_generator
from livephoto_core.evaluation.measuring import recognise
from livephoto_core.media import read_image
from livephoto_core.pipeline import LivePhoto

MOTIONS = (*THING[:4], *CAMERA[:4])
LEVELS = (1, 4, 7, 10)
FRAMES, STEPS, SIDE = 16, 6, 64


def photographs():
    """Photographs that come with scikit-image; the demo never saw them."""
    from skimage import data

    for name in ("chelsea", "coffee", "astronaut"):
        image = Image.fromarray(getattr(data, name)())
        scale = 160 / min(image.size)
        image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.LANCZOS)
        yield Photo(name, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.fixture(scope="module")
def scenes(server):
    """A clip of each motion, and its first frame as a picture in ComfyUI's input folder: (clip, name, photo [3, S, S])."""
    found = []
    for number, clip in enumerate(bench_clips(list(photographs()), HELD_OUT_SHAPES, MOTIONS, len(MOTIONS), 0, FRAMES, SIDE)):
        path = server.base / "input" / f"scene{number}.png"
        pixels = (clip.frames[0].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(path)
        found.append((clip, path.name, read_image(path)))
    return found


@pytest.fixture(scope="module")
def through_comfyui(server, clip_graph, changed, frames_of, scenes):
    """Every scene at every level [scenes][levels] -> frames [F, 3, S, S]."""

    def clip(name, text, level, seed):
        graph = changed(
            clip_graph,
            photo={"image": name},
            reference={"frames": FRAMES},
            text={"text": text},
            invert={"steps": STEPS},
            motion={"level": level},
            positive={"frames": FRAMES, "text": text},
            negative={"frames": FRAMES},
            sample={"frames": FRAMES, "seed": seed, "steps": STEPS, "cfg": 1.0},
        )
        return frames_of(server.run(graph))

    return [[clip(name, scene.caption, level, seed) for level in LEVELS] for seed, (scene, name, _) in enumerate(scenes)]


@pytest.fixture(scope="module")
def through_the_core(demo, scenes):
    """The same clips without ComfyUI."""
    generate, count = batch_generator(LivePhoto(*demo), BatchSampling(STEPS, cfg=1.0)), len(LEVELS)
    return [
        list(generate(photo.expand(count, -1, -1, -1), [clip.caption] * count, LEVELS, [seed] * count))
        for seed, (clip, _, photo) in enumerate(scenes)
    ]


def figures(clips, scenes):
    """Share of the clips of more than the lowest level whose motion is right, and the mean Spearman of level and 1 - SSIM."""
    right = [
        recognise(frames, scene).motion == scene.scene.motion
        for row, (scene, _, _) in zip(clips, scenes, strict=True)
        for frames in row[1:]
    ]
    moved = [[dissimilarity(frames) for frames in row] for row in clips]
    return float(np.mean(right)), float(np.mean(per_clip_spearman(LEVELS, moved)))


def test_direction_and_level_hold_through_comfyui_as_in_the_core(through_comfyui, through_the_core, scenes):
    pairs = zip(through_comfyui, through_the_core, strict=True)
    errors = [(a - b).square().mean().item() for ours, core in pairs for a, b in zip(ours, core, strict=True)]
    psnr = -10 * np.log10(errors)
    ours, core = figures(through_comfyui, scenes), figures(through_the_core, scenes)
    print(f"{len(errors)} clips: right {ours[0]:.3f}, core {core[0]:.3f}; Spearman a clip {ours[1]:.3f}, core {core[1]:.3f}")
    print(f"PSNR of ComfyUI's clips to the core's: {psnr.min():.1f} dB at the least, {psnr.mean():.1f} on average")
    assert psnr.min() >= 40
    assert ours[0] == pytest.approx(core[0], abs=1 / 24)
    assert ours[1] == pytest.approx(core[1], abs=0.02)
    assert ours[0] >= 0.6 and ours[1] >= 0.9
