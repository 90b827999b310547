"""Sampling LivePhoto-Wan2.1: its guidance as a GUIDER and its noise schedule as SIGMAS, for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.wan_schedule import SHIFT, wan_sigmas
from . import wan_host
from .checks import check_numbers
from .wan_inputs import BRANCH


def check_branch(name: str, conditioning: list) -> None:
    """Refuse CONDITIONING that is not the branch of the guidance that its input is for.

    Raises:
        LivePhotoError: names the input and what to connect.
    """
    if any(options.get(BRANCH) != name for _, options in conditioning):
        raise LivePhotoError(f"{name} is not the output {name} of Motion Intensity (Wan): connect its three outputs by their names")


class LivePhotoWanGuider(io.ComfyNode):
    """The three-branch guidance with one strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoWanGuider",
            display_name="LivePhoto Guider (Wan)",
            category="LivePhoto/Wan2.1",
            description="LivePhoto-Wan2.1's guidance for SamplerCustomAdvanced: away from the negative text, towards the level.",
            inputs=[
                io.Model.Input("model", tooltip="From Load LivePhoto-Wan2.1."),
                io.Conditioning.Input("positive", tooltip="From Motion Intensity (Wan)."),
                io.Conditioning.Input("negative", tooltip="From Motion Intensity (Wan)."),
                io.Conditioning.Input("empty", tooltip="From Motion Intensity (Wan)."),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Strength of text and level; the authors use 5. 1 is no guidance, in a third of the time.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, positive: list, negative: list, empty: list, cfg: float) -> io.NodeOutput:
        check_numbers(cfg=cfg)
        if not wan_host.is_applied(model):
            raise LivePhotoError("LivePhoto Guider (Wan) needs the MODEL of Load LivePhoto-Wan2.1: connect that one")
        for name, conditioning in (("positive", positive), ("negative", negative), ("empty", empty)):
            check_branch(name, conditioning)
        guider = wan_host.WanGuider(model)
        guider.set_branches(positive, negative, empty)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class LivePhotoWanSigmas(io.ComfyNode):
    """The official scheduler's noise levels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoWanSigmas",
            display_name="LivePhoto Sigmas (Wan)",
            category="LivePhoto/Wan2.1",
            description="The noise levels of LivePhoto-Wan2.1's own scheduler, for SamplerCustomAdvanced with the sampler euler.",
            inputs=[
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Sampling steps; the authors use 30."),
                io.Float.Input(
                    "shift",
                    default=SHIFT,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Higher spends more steps on the noisy part; the authors use 5.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps: int, shift: float) -> io.NodeOutput:
        check_numbers(shift=shift)
        return io.NodeOutput(wan_sigmas(steps, shift))
