"""ComfyUI-LivePhoto: the entry point that ComfyUI calls."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
