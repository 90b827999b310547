"""Measures of how strongly a clip moves, as candidates for LivePhoto's levels: each rises with the motion.

The paper (3.4) tried optical flow, mean squared error and feature similarity before it chose SSIM.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..measures import flow_length, squared_error
from .features import Features, consistency
from .figures import dissimilarity

# frames [F, 3, H, W], 0..1 -> strength of motion
Measure = Callable[[torch.Tensor], float]


def squared_difference(frames: torch.Tensor) -> float:
    """Mean squared error of adjacent frames."""
    return float(squared_error(frames[1:], frames[:-1]).mean())


def flow_magnitude(frames: torch.Tensor) -> float:
    """Mean length of the optical flow between adjacent frames, in pixels of the frames."""
    return float(flow_length(frames[:-1], frames[1:]).mean())


def feature_change(features: Features) -> Measure:
    """1 - mean cosine of adjacent frames' features, as a measure."""
    return lambda frames: 1 - consistency(features(frames)) / 100


MEASURES: dict[str, Measure] = {"1 - SSIM": dissimilarity, "MSE": squared_difference, "optical flow": flow_magnitude}
