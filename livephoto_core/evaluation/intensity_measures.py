"""Measures of how strongly a clip moves, as candidates for LivePhoto's levels: each rises with the motion.

The paper (3.4) tried optical flow, mean squared error and feature similarity before it chose SSIM.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from .features import Features, consistency
from .figures import dissimilarity

# frames [F, 3, H, W], 0..1 -> strength of motion
Measure = Callable[[torch.Tensor], float]
GREY = torch.tensor([0.299, 0.587, 0.114])


def squared_difference(frames: torch.Tensor) -> float:
    """Mean squared error of adjacent frames."""
    return float((frames.diff(dim=0) ** 2).mean())


def flow_magnitude(frames: torch.Tensor) -> float:
    """Mean length of the optical flow between adjacent frames, in pixels of the frames.

    TV-L1 of scikit-image (Zach, Pock and Bischof 2007) on grey pictures: where a photo is flat, methods without its smoothness,
    such as Lucas-Kanade's, make up any motion.
    """
    from skimage.registration import optical_flow_tvl1

    grey = torch.einsum("fchw,c->fhw", frames, GREY).numpy()
    flows = [optical_flow_tvl1(a, b, num_warp=3, num_iter=6) for a, b in pairwise(grey)]
    return float(np.mean([np.hypot(*flow).mean() for flow in flows]))


def feature_change(features: Features) -> Measure:
    """1 - mean cosine of adjacent frames' features, as a measure."""
    return lambda frames: 1 - consistency(features(frames)) / 100


MEASURES: dict[str, Measure] = {"1 - SSIM": dissimilarity, "MSE": squared_difference, "optical flow": flow_magnitude}
