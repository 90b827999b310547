"""What parameters are at the start of training."""

import torch
from torch import nn


def fill(parameter: torch.Tensor | None, value: float) -> None:
    """Set a whole parameter; a layer of ComfyUI's may have none before its weights are loaded."""
    if parameter is not None:
        nn.init.constant_(parameter, value)
