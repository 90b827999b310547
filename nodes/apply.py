"""Applying LivePhoto to a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import comfy_host
from .types import LoadedModel, ModelType, Motion, MotionType, Reference, ReferenceType


class LivePhotoApply(io.ComfyNode):
    """MODEL in, MODEL out: any sampler then makes clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoApply",
            display_name="Apply LivePhoto",
            category="LivePhoto",
            description="Makes an SD1.5 MODEL animate the reference photo; sample it with any sampler, one latent a frame.",
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5 model, or the demo's. LoRAs may come before or after this node."),
                ModelType.Input("livephoto_model", tooltip="From Load LivePhoto Model or Load LivePhoto Demo."),
                ReferenceType.Input("reference", tooltip="The photo, from Encode Reference Photo."),
                MotionType.Input("motion", tooltip="How strongly the clip moves, from Motion Intensity."),
                io.Float.Input(
                    "image_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much the photo and the level count: 1 is as trained, 0 leaves both out.",
                ),
                io.Float.Input(
                    "motion_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much the motion modules count: 1 is as trained, 0 makes every frame on its own.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler; give it a latent of 16 frames (batch size 16) a photo.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        livephoto_model: LoadedModel,
        reference: Reference,
        motion: Motion,
        image_strength: float,
        motion_strength: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(comfy_host.apply(model, livephoto_model, reference, motion, image_strength, motion_strength))
