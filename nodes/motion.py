"""How strongly a clip moves (paper section 3.4)."""

from __future__ import annotations

from comfy_api.latest import io

from ..livephoto_core.intensity import check_level
from .types import Motion, MotionType


class LivePhotoIntensity(io.ComfyNode):
    """A level 1..10."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoIntensity",
            display_name="Motion Intensity",
            category="LivePhoto",
            description="How strongly the clip moves, from 1 (barely) to 10 (as fast as anything the model has seen).",
            inputs=[
                io.Float.Input(
                    "level",
                    default=5.0,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="1 to 10, fractions too. The text says what moves, the level how strongly.",
                )
            ],
            outputs=[MotionType.Output(display_name="motion", tooltip="For Apply LivePhoto and Measure Motion.")],
        )

    @classmethod
    def execute(cls, level: float) -> io.NodeOutput:
        return io.NodeOutput(Motion(check_level(level)))
