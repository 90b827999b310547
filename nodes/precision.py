"""In which precision our own weights are kept."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import torch


def weight_dtype(device: torch.device, parameters: int, supported: Sequence[torch.dtype]) -> torch.dtype:
    """ComfyUI's choice for a UNet of so many parameters, but never 8 bits: its options for that are for UNets that it casts."""
    dtype = comfy.model_management.unet_dtype(device, parameters, supported_dtypes=list(supported))
    if dtype.itemsize > 1:
        return dtype
    return comfy.model_management.unet_manual_cast(dtype, device, list(supported))
