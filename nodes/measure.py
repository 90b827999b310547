"""Measuring how strongly a clip moves."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from einops import rearrange

from ..livephoto_core.config import AdapterConfig
from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.intensity import clip_ssim, fractional_level
from ..livephoto_core.measures import MOTION_NAMES, clip_similarity
from .types import LoadedModel, ModelType, Motion, MotionType


def measured(images: torch.Tensor, config: AdapterConfig) -> tuple[float, float, str]:
    """SSIM and level of one clip's frames [F, H, W, C], and what the level is of, where that is not SSIM."""
    from ..livephoto_core.media import fit_image

    # at the size that the levels were calibrated at: the same motion is another SSIM in a larger picture
    frames = fit_image(rearrange(images[..., :3], "f h w c -> f c h w").float(), config.size, config.size, "crop")
    ssim, by = float(clip_ssim(frames)), config.intensity_measure
    found = ssim if by == "ssim" else clip_similarity(frames, by)
    of = "" if by == "ssim" else f", {MOTION_NAMES[by]} {1 - found:.4g}"
    return ssim, float(fractional_level(found, config.ssim_thresholds)), of


def report(ssim: float, level: float, of: str, wanted: float | None) -> str:
    """A line on what was measured, beside what was asked for."""
    asked = "" if wanted is None else f", asked for {wanted:g} ({level - wanted:+.1f})"
    return f"level {level:.1f}{asked}{of}, SSIM {ssim:.4f}"


class LivePhotoMeasureMotion(io.ComfyNode):
    """SSIM and level of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoMeasureMotion",
            display_name="Measure Motion",
            category="LivePhoto",
            description="Measures how strongly a clip moves, on the scale of the LivePhoto checkpoint.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of a clip, in order, or of several clips one after the other."),
                ModelType.Input("livephoto_model", tooltip="Whose levels to measure by."),
                MotionType.Input("motion", optional=True, tooltip="The level that was asked for, to show beside the measured one."),
                io.Int.Input(
                    "clips",
                    optional=True,
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="As many as there were photos: each is measured by itself, and level and SSIM are their means.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="level",
                    tooltip="1 to 10; whole in the middle of a level's band, its fraction tells how far the clip is from there.",
                ),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM of adjacent frames: 1 is a still clip."),
                io.String.Output(display_name="report", tooltip="Both, and the level asked for, in words."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor, livephoto_model: LoadedModel, motion: Motion | None = None, clips: int = 1
    ) -> io.NodeOutput:
        if not livephoto_model.config.ssim_thresholds:
            raise LivePhotoError(f"{livephoto_model.name} has no levels yet: run livephoto calibrate on it first")
        frames, rest = divmod(len(images), clips)
        if rest:
            raise LivePhotoError(f"{len(images)} images are not {clips} clips of one length: set clips to the number of photos")
        if frames < 2:
            raise LivePhotoError(f"motion is measured between frames, a clip here has {frames}: connect a whole clip")
        asked = None if motion is None else motion.level
        found = [measured(clip, livephoto_model.config) for clip in images.split(frames)]
        lines = [report(*figures, asked) for figures in found]
        text = "\n".join(lines if clips == 1 else (f"{number}: {line}" for number, line in enumerate(lines, 1)))
        if cls.hidden is not None:
            from server import PromptServer

            # shown on the node; `ui` is for scripts, which read it in the history
            PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        ssim, level = (sum(figures[k] for figures in found) / clips for k in (0, 1))
        return io.NodeOutput(level, ssim, text, ui=ui.PreviewText(text))
