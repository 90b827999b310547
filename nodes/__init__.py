"""The nodes, a topic a file; nothing heavy is imported before a node runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import LivePhotoApply
from .loaders import LivePhotoDemoLoader, LivePhotoModelLoader, register_folder


class LivePhotoExtension(ComfyExtension):
    """What the pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LivePhotoModelLoader, LivePhotoDemoLoader, LivePhotoApply]


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI when it loads the pack."""
    register_folder()
    return LivePhotoExtension()
