"""The nodes, a topic a file; nothing heavy is imported before a node runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import LivePhotoApply
from .loaders import LivePhotoDemoLoader, LivePhotoModelLoader, register_folder
from .measure import LivePhotoMeasureMotion
from .motion import LivePhotoIntensity
from .reference import LivePhotoPriorInversion, LivePhotoReferenceEncode
from .sampling import LivePhotoPriorNoise, LivePhotoSampler
from .text import LivePhotoTextReweight
from .wan_inputs import LivePhotoWanIntensity, LivePhotoWanReference
from .wan_loader import LivePhotoWanLoader
from .wan_sampling import LivePhotoWanGuider, LivePhotoWanSigmas
from .windows import LivePhotoContextWindows


class LivePhotoExtension(ComfyExtension):
    """What the pack adds to ComfyUI; the model folder must be known before a node lists its files."""

    def __init__(self) -> None:
        register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LivePhotoModelLoader,
            LivePhotoDemoLoader,
            LivePhotoReferenceEncode,
            LivePhotoPriorInversion,
            LivePhotoTextReweight,
            LivePhotoIntensity,
            LivePhotoApply,
            LivePhotoPriorNoise,
            LivePhotoSampler,
            LivePhotoContextWindows,
            LivePhotoMeasureMotion,
            LivePhotoWanLoader,
            LivePhotoWanReference,
            LivePhotoWanIntensity,
            LivePhotoWanGuider,
            LivePhotoWanSigmas,
        ]
