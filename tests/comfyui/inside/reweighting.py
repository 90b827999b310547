"""Re-weight Motion Text and Measure Motion, each node by itself."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from kit import case, demo, node, part, photos, refused, text

FRAMES = 16
TEXT = "the camera pans left while xylophones glimmer"
# three chunks of CLIP's 77 tokens
LONG = " ".join([TEXT] * 20)


def encode(prompt: str) -> list:
    return text(prompt)


def reweighted(conditioning: list, strength: float = 1.0, frames: int = FRAMES, **shown: Any) -> Any:
    inputs = {"conditioning": conditioning, "livephoto_model": demo().livephoto, "frames": frames, "strength": strength}
    return part("nodes.text").LivePhotoTextReweight.execute(**inputs, **shown)


def weighed(prompt: str) -> dict[str, Any]:
    """The node's outputs for a text, and the weights behind them."""
    conditioning = encode(prompt)
    out = reweighted(conditioning, clip=demo().clip, text=prompt)
    [[rows, options]], picture, listing = out.result
    weights = part("nodes.text").weigh(conditioning[0][0], demo().livephoto, FRAMES)
    words = part("nodes.text").word_weights(demo().clip, prompt, weights[0].mean(0))
    found = {"text": conditioning[0][0], "rows": rows, "picture": picture, "weights": weights}
    shown = [[entry["type"], entry["filename"]] for entry in out.ui.as_dict()["images"]]
    found |= {"listing": listing, "words": words, "options": list(options), "given": list(conditioning[0][1])}
    return {**found, "shown": shown}


@case
def plain() -> dict[str, Any]:
    return weighed(TEXT)


@case
def long() -> dict[str, Any]:
    return weighed(LONG)


@case
def weighted_word() -> dict[str, Any]:
    return weighed("the camera (pans:1.4) left")


@case
def strengths() -> dict[str, Any]:
    found = {str(strength): reweighted(encode(TEXT), strength).result[0][0][0] for strength in (0.0, 0.5, 1.0)}
    return {**found, "text": encode(TEXT)[0][0]}


@case
def without_words() -> dict[str, Any]:
    _, picture, listing = reweighted(encode(TEXT)).result
    return {"picture": picture, "listing": listing}


@case
def other_frames_and_keys() -> dict[str, Any]:
    """Two entries, as Conditioning (Combine) gives them, with keys of other nodes."""
    entries = [[encode(TEXT)[0][0], {"strength": 0.5, "of another pack": 3}], encode("zooming in")[0]]
    found = reweighted(entries, frames=5).result[0]
    return {"rows": [len(rows) for rows, _ in found], "options": found[0][1], "first": found[0][0], "second": found[1][0]}


@case
def text_of_another_width() -> dict[str, Any]:
    return refused(lambda: reweighted([[torch.zeros(1, 77, 768), {}]]))


@case
def text_of_rows() -> dict[str, Any]:
    return refused(lambda: reweighted(reweighted(encode(TEXT)).result[0]))


@case
def part_of_a_chunk() -> dict[str, Any]:
    return refused(lambda: reweighted([[encode(TEXT)[0][0][:, :60], {}]]))


@case
def strength_that_is_no_number() -> dict[str, Any]:
    return refused(lambda: reweighted(encode(TEXT), float("nan")))


@functools.cache
def clip() -> torch.Tensor:
    """Eight frames [F, H, W, 3] of a photo that slides by two pixels a frame."""
    [photo] = photos()
    smooth = torch.nn.functional.avg_pool2d(photo.movedim(-1, 0)[None], 9, stride=1, padding=4)[0].movedim(0, -1)
    return torch.stack([smooth.roll(2 * step, 1) for step in range(8)])


def measured(images: torch.Tensor, **inputs: Any) -> Any:
    return part("nodes.measure").LivePhotoMeasureMotion.execute(images, demo().livephoto, **inputs)


@case
def motion() -> dict[str, Any]:
    asked = node("LivePhotoIntensity", level=2.5)[0]
    out = measured(clip(), motion=asked)
    level, ssim, report = out.result
    alpha = torch.cat([clip(), torch.rand(8, 64, 64, 1)], -1)
    found = {"frames": clip().movedim(-1, 1), "level": level, "ssim": ssim, "report": report, "shown": out.ui.as_dict()}
    return {**found, "with alpha": measured(alpha).result[1], "not asked": measured(clip()).result[2]}


@case
def motion_of_two_clips() -> dict[str, Any]:
    """One that slides and a still one of another photo, as VAE Decode gives those of two photos."""
    still = photos(2)[1:].expand(8, -1, -1, -1)
    both, asked = torch.cat([clip(), still]), node("LivePhotoIntensity", level=2.5)[0]
    level, ssim, report = measured(both, motion=asked, clips=2).result
    found = {"level": level, "ssim": ssim, "report": report, "one": measured(clip(), motion=asked).result}
    return {**found, "uneven": refused(lambda: measured(both, clips=3)), "short": refused(lambda: measured(both, clips=16))}


@case
def motion_of_a_larger_clip() -> dict[str, Any]:
    large = torch.nn.functional.interpolate(clip().movedim(-1, 1), size=(192, 256), mode="bicubic", antialias=True).clamp(0, 1)
    level, ssim, _ = measured(large.movedim(1, -1)).result
    return {"frames": large, "level": level, "ssim": ssim}


@case
def motion_by_another_measure() -> dict[str, Any]:
    config = SimpleNamespace(ssim_thresholds=tuple(1 - 0.002 * k for k in range(1, 10)), intensity_measure="mse", size=64)
    level, ssim, report = part("nodes.measure").LivePhotoMeasureMotion.execute(clip(), SimpleNamespace(config=config)).result
    return {"frames": clip().movedim(-1, 1), "level": level, "ssim": ssim, "report": report}


@case
def still() -> dict[str, Any]:
    level, ssim, _ = measured(clip()[:1].expand(4, -1, -1, -1)).result
    return {"level": level, "ssim": ssim}


@case
def one_frame() -> dict[str, Any]:
    return refused(lambda: measured(clip()[:1]))


@case
def broken_frames() -> dict[str, Any]:
    return refused(lambda: measured(clip() * float("nan")))


@case
def no_thresholds() -> dict[str, Any]:
    bare = SimpleNamespace(name="bare.safetensors", config=SimpleNamespace(ssim_thresholds=()))
    return refused(lambda: part("nodes.measure").LivePhotoMeasureMotion.execute(clip(), bare))
