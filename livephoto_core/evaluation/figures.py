"""Figures of single clips and of many: rank correlation, fidelity, sharpness, fit to the true motion, intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..demo.clips import DemoClip
from ..demo.motions import SPEEDS
from ..demo.scenes import render, true_path
from ..intensity import clip_ssim
from .matching import warp

INTERVAL = 0.95
BOOTSTRAP_DRAWS = 1000
FIT_SPEEDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation -1..1 of paired values; nan where one side does not vary, or there are none."""
    from scipy.stats import rankdata

    if not len(a):
        return float("nan")
    ranks = np.stack([rankdata(a), rankdata(b)])
    ranks = ranks - ranks.mean(1, keepdims=True)
    size = np.sqrt((ranks**2).sum(1).prod())
    return float((ranks[0] * ranks[1]).sum() / size) if size > 0 else float("nan")


def per_clip_spearman(levels: Sequence[float], measured: Sequence[Sequence[float]]) -> list[float]:
    """For each clip, the rank correlation of the levels asked for and what was measured at each (a row a clip)."""
    return [spearman(levels, row) for row in measured]


def dissimilarity(frames: torch.Tensor) -> float:
    """1 - mean SSIM of adjacent frames [F, 3, H, W]: rises with the motion."""
    return 1 - float(clip_ssim(frames))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of one shape, values 0..1; at most 100."""
    return float(-10 * ((a - b) ** 2).mean().clamp(min=1e-10).log10())


def first_frame_psnr(frames: torch.Tensor, reference: torch.Tensor) -> float:
    """PSNR in dB of a clip's first frame [F, 3, S, S] against the photo [3, S, S]."""
    return psnr(frames[0], reference)


def sharpness(picture: torch.Tensor, region: torch.Tensor) -> float:
    """Mean gradient energy of a picture [3, S, S] where `region` [S, S] is 1: squared steps to the right and downward."""
    across, down = picture.diff(dim=2)[:, :-1] ** 2, picture.diff(dim=1)[:, :, :-1] ** 2
    # a step counts where both of its ends do
    inside = region[:-1, :-1] * region[1:, :-1] * region[:-1, 1:]
    return float(((across + down).mean(0) * inside).sum() / inside.sum().clamp(min=1))


def in_view(clip: DemoClip) -> torch.Tensor:
    """Where [S, S] the clip's last frame shows what its first frame showed (1), and not what came in from outside (0)."""
    frames, side = len(clip.frames), clip.frames.shape[-1]
    if clip.scene.thing is not None:
        return torch.ones(side, side)
    return warp(clip.frames[0], true_path(clip.scene, clip.speed, frames)[-1:])[1][0]


def sharpness_ratio(frames: torch.Tensor, clip: DemoClip) -> float:
    """Sharpness of the last frame of [F, 3, S, S] over that of the true clip's last frame, where the photo is in view."""
    region = in_view(clip)
    return sharpness(frames[-1], region) / max(sharpness(clip.frames[-1], region), 1e-8)


def fit_psnr(frames: torch.Tensor, clip: DemoClip) -> float:
    """PSNR in dB of a clip against the clip's scene rendered at the speed, near the true one, that fits it best."""
    slowest, fastest = SPEEDS[clip.scene.motion]
    speeds = sorted({min(max(clip.speed * share, slowest), fastest) for share in FIT_SPEEDS})
    return max(psnr(frames, render(clip.scene, speed, len(frames), frames.shape[-1])) for speed in speeds)


def share_interval(right: int, count: int) -> tuple[float, float]:
    """Exact interval (95 %, Clopper and Pearson) of a share of independent clips; (nan, nan) of none.

    A bootstrap would take clips that all agree for certain.
    """
    from scipy.stats import binomtest

    if not count:
        return float("nan"), float("nan")
    found = binomtest(right, count).proportion_ci(INTERVAL, "exact")
    return float(found.low), float(found.high)


def interval(count: int, figure: Callable[[np.ndarray], float], seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> tuple[float, float]:
    """Bootstrap interval (95 %) of a figure of `count` clips; `figure` takes the indices [count] of a draw with replacement.

    Draws whose figure is nan are left out; (nan, nan) if all are, and of fewer than two clips, which tell nothing of others.
    """
    rng = np.random.default_rng(seed)
    values = np.array([figure(rng.integers(count, size=count)) for _ in range(draws if count > 1 else 0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)
