"""Noise with a trace of the photo, and a sampler with everything in one node (paper section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from einops import rearrange

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.inversion import PRIOR_END, PRIOR_START, prior_noise
from .checks import check_choice, check_numbers
from .comfy_host import KEY
from .sampling_checks import check_same_photos
from .types import Reference, ReferenceType


@dataclass(frozen=True)
class PriorNoise:
    """A NOISE: ComfyUI's own of the seed, mixed with the inverted photo, most in the first frame.

    start, end: the photo's share in the first and the last frame, 0..1; with both 0 it is ComfyUI's noise alone.
    """

    reference: Reference
    seed: int
    start: float
    end: float

    def generate_noise(self, latent: dict) -> torch.Tensor:
        """Noise of the shape of a LATENT's samples [B * F, C, h, w].

        Raises:
            LivePhotoError: the reference has no inverted latent, or the latent does not go with it.
        """
        samples = latent["samples"]
        noise = comfy.sample.prepare_noise(samples, self.seed, latent.get("batch_index"))
        if self.start == 0 and self.end == 0:
            return noise
        inverted = self.reference.inverted
        if inverted is None:
            raise LivePhotoError(
                "the reference has no inverted latent: put Invert Reference Latent behind Encode Reference Photo, or set "
                "prior_start and prior_end to 0"
            )
        if inverted.shape[1:] != samples.shape[1:] or len(samples) % len(inverted):
            raise LivePhotoError(
                f"the latent is {list(samples.shape)}, the inverted photo {list(inverted.shape)}: sample the LATENT of Encode "
                "Reference Photo"
            )
        clips = rearrange(noise, "(b f) c h w -> b f c h w", b=len(inverted))
        return rearrange(prior_noise(clips, inverted, self.start, self.end), "b f c h w -> (b f) c h w")


def prior_inputs() -> list[io.Input]:
    """The two shares of the prior."""
    tip = "Share of the photo's inverted latent in the noise of the {} frame; the paper's is {}, 0 and 0 are plain noise."
    return [
        io.Float.Input(
            "prior_start", default=PRIOR_START, min=0.0, max=1.0, step=0.001, round=0.0001, tooltip=tip.format("first", PRIOR_START)
        ),
        io.Float.Input(
            "prior_end", default=PRIOR_END, min=0.0, max=1.0, step=0.001, round=0.0001, tooltip=tip.format("last", PRIOR_END)
        ),
    ]


class LivePhotoPriorNoise(io.ComfyNode):
    """NOISE for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoPriorNoise",
            display_name="Prior Noise",
            category="LivePhoto",
            description="Noise that holds a trace of the photo, for SamplerCustomAdvanced: clips keep closer to the photo.",
            inputs=[
                ReferenceType.Input("reference", tooltip="From Invert Reference Latent."),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise.",
                ),
                *prior_inputs(),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, reference: Reference, noise_seed: int, prior_start: float, prior_end: float) -> io.NodeOutput:
        return io.NodeOutput(PriorNoise(reference, noise_seed, prior_start, prior_end))


class LivePhotoSampler(io.ComfyNode):
    """ComfyUI's sampling with the empty clip and the prior noise made here."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoSampler",
            display_name="LivePhoto Sampler",
            category="LivePhoto",
            description="Samples a clip of the reference photo: KSampler with the clip's latent and Prior Noise built in.",
            inputs=[
                io.Model.Input("model", tooltip="From Apply LivePhoto."),
                io.Conditioning.Input("positive", tooltip="What moves and how, best through Re-weight Motion Text."),
                io.Conditioning.Input("negative", tooltip="What to keep away from; an empty text will do."),
                ReferenceType.Input("reference", tooltip="The same reference as in Apply LivePhoto."),
                io.Int.Input("frames", default=16, min=2, max=1024, tooltip="Frames of the clip."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Seed of the noise."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=4.0, min=1.0, max=30.0, step=0.1, round=0.01, tooltip="Guidance; 1 is none."),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="sgm_uniform",
                    tooltip="As in KSampler; dpmpp_2m on sgm_uniform is what livephoto animate does.",
                ),
                *prior_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="A latent a frame, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        negative: list,
        reference: Reference,
        frames: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        prior_start: float,
        prior_end: float,
    ) -> io.NodeOutput:
        # ComfyUI takes the first of the list for a name that it does not know
        check_choice("sampler_name", sampler_name, comfy.samplers.KSampler.SAMPLERS)
        check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        check_numbers(cfg=cfg)
        if not model.get_additional_models_with_key(KEY):
            raise LivePhotoError("LivePhoto Sampler needs the MODEL from Apply LivePhoto: put that node in front of it")
        check_same_photos(model.get_attachment(KEY), reference)
        samples = torch.zeros(len(reference.latent) * frames, *reference.latent.shape[1:])
        noise = PriorNoise(reference, seed, prior_start, prior_end).generate_noise({"samples": samples})
        clip = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler_name,
            scheduler,
            positive,
            negative,
            samples,
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return io.NodeOutput({"samples": clip})
