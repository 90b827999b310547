"""The reference photo: encoding it, and inverting its latent to noise (paper sections 3.1 to 3.3)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io, ui
from einops import rearrange

from ..livephoto_core.config import BaseShape
from ..livephoto_core.errors import LivePhotoError
from .checks import check_choice, check_size
from .comfy_host import KEY, base_shape
from .types import Reference, ReferenceType

FITS = ("crop", "pad", "stretch")
# as of `livephoto animate`: VAEs take multiples of 8, or of less, and would silently cut what is over
GRID = 8


def fitted(image: torch.Tensor, width: int, height: int, fit: str) -> torch.Tensor:
    """An IMAGE [B, H, W, 3 or more] brought to a size, three channels."""
    from ..livephoto_core.media import fit_image

    pictures = fit_image(rearrange(image[..., :3], "b h w c -> b c h w"), height, width, fit)
    return rearrange(pictures, "b c h w -> b h w c").clamp(0, 1)


def patch_tokens(output: Any, photos: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """A CLIP_VISION_OUTPUT's patch tokens [B, side * side, D] without the class token, and their grid.

    Raises:
        LivePhotoError: another number of pictures, or tokens that are no square of patches.
    """
    tokens = output["last_hidden_state"][:, 1:]
    if len(tokens) != photos:
        raise LivePhotoError(
            f"CLIP Vision Encode saw {len(tokens)} pictures, the image input has {photos}: connect the same images"
        )
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise LivePhotoError(
            f"the CLIP_VISION_OUTPUT has {tokens.shape[1]} patches, which is no square: load DINOv2-large in Load CLIP Vision"
        )
    return tokens, (side, side)


def check_same_view(photo: torch.Tensor, width: int, height: int, fit: str) -> None:
    """Refuse tokens of a whole photo or of its middle square where the clip shows something else of it.

    Args:
        photo: IMAGE [B, H, W, C], before it is brought to the clip's size.

    Raises:
        LivePhotoError: no setting of CLIP Vision Encode shows it what the clip shows.
    """
    tall, wide = photo.shape[1:3]
    alike = abs(wide / tall / (width / height) - 1) < 0.03
    if not (alike or fit == "stretch" or (fit == "crop" and width == height)):
        raise LivePhotoError(
            f"a photo of {wide}x{tall} with fit {fit} for a clip of {width}x{height}: CLIP Vision Encode saw another part of it "
            "than the clip shows; connect its CLIP_VISION to clip_vision here in place of the clip_vision_output"
        )


def tokens_of(
    image: torch.Tensor, photo: torch.Tensor, fit: str, output: Any | None, encoder: Any | None
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Patch tokens and grid of a photo, from a CLIP_VISION_OUTPUT of `image` or by a CLIP_VISION that sees the fitted `photo`.

    Raises:
        LivePhotoError: neither or both are given, or the output does not go with the photo.
    """
    if (output is None) == (encoder is None):
        raise LivePhotoError(
            f"Encode Reference Photo has {'neither' if output is None else 'both'} of clip_vision and clip_vision_output: "
            "connect one"
        )
    if output is None:
        return patch_tokens(encoder.encode_image(photo, crop=False), len(photo))
    found = patch_tokens(output, len(photo))
    check_same_view(image, photo.shape[2], photo.shape[1], fit)
    return found


class LivePhotoReferenceEncode(io.ComfyNode):
    """The photo as latent and patch tokens, and the empty latent of a clip of its size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoReferenceEncode",
            display_name="Encode Reference Photo",
            category="LivePhoto",
            description="Brings the photo to the clip's size and encodes it. Its LATENT is the empty clip to sample.",
            inputs=[
                io.Image.Input("image", tooltip="The photo to animate; several photos give a clip each."),
                io.Vae.Input("vae", tooltip="The VAE of the MODEL."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="The same photo through CLIP Vision Encode, with DINOv2 (or the demo's CLIP_VISION). Connect this or "
                    "clip_vision.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="DINOv2 from Load CLIP Vision, or the demo's CLIP_VISION: it sees the photo as the clip shows it, at "
                    "any size and fit.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=32,
                    max=2048,
                    step=GRID,
                    tooltip="Width of the clip in pixels: 64 for the demo, else near the size the checkpoint was trained at.",
                ),
                io.Int.Input("height", default=512, min=32, max=2048, step=GRID, tooltip="Height of the clip in pixels."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="How a photo of another shape comes to the size: cut at the sides, bars added, or stretched.",
                ),
                io.Int.Input("frames", default=16, min=2, max=1024, tooltip="Frames of the clip, for the LATENT output."),
            ],
            outputs=[
                ReferenceType.Output(
                    display_name="reference",
                    tooltip="For Apply LivePhoto, Invert Reference Latent and, at prior 0, LivePhoto Sampler.",
                ),
                io.Image.Output(display_name="image", tooltip="The photo as the clip begins with it."),
                io.Latent.Output(display_name="latent", tooltip="The empty latent of the clip, a latent a frame, for any sampler."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        vae: Any,
        width: int,
        height: int,
        fit: str,
        frames: int,
        clip_vision_output: Any | None = None,
        clip_vision: Any | None = None,
    ) -> io.NodeOutput:
        check_choice("fit", fit, FITS)
        check_size(width, height, GRID)
        photo = fitted(image, width, height, fit)
        tokens, grid = tokens_of(image, photo, fit, clip_vision_output, clip_vision)
        latent = vae.encode(photo)
        empty = torch.zeros(len(photo) * frames, *latent.shape[1:])
        return io.NodeOutput(Reference(latent, tokens, grid), photo, {"samples": empty}, ui=ui.PreviewImage(photo, cls=cls))


def invert(model: Any, conditioning: Any, latent: torch.Tensor, steps: int) -> torch.Tensor:
    """Inv(r0) [B, C, h, w] of latents in the VAE's scale, by a MODEL without LivePhoto under the conditioning of an empty text.

    ComfyUI's guider runs it: it loads the MODEL, shows progress and previews, and stops on Cancel within a step.
    """
    from ..livephoto_core.config import NoiseSchedule
    from ..livephoto_core.inversion import inversion_timesteps, invert_sigmas

    sampling = model.get_model_object("model_sampling")
    # LCM's sampling keeps the sigmas of fifty timesteps alone: more steps than those meet some of them twice
    timesteps = getattr(sampling, "num_timesteps", len(sampling.sigmas))
    sigmas = sampling.sigma(inversion_timesteps(NoiseSchedule(timesteps=timesteps), steps)).unique()

    def rise(denoise: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, callback: Any = None, **_: Any) -> torch.Tensor:
        done = 0

        def clean(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            nonlocal done
            found = denoise(x, sigma.expand(len(x)), **extra_args)
            callback({"i": done, "denoised": found, "x": x})
            done += 1
            return found

        return invert_sigmas(clean, x, sigmas)

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    show = latent_preview.prepare_callback(model, len(sigmas) - 1)
    disable = not comfy.utils.PROGRESS_BAR_ENABLED
    found = guider.sample(
        torch.zeros_like(latent), latent, comfy.samplers.KSAMPLER(rise), sigmas, callback=show, disable_pbar=disable
    )
    return model.model.process_latent_in(found)


def check_inversion(base: BaseShape, conditioning: Any, reference: Reference) -> None:
    """Refuse a text or a photo that was not encoded for a base MODEL.

    Raises:
        LivePhotoError: names what differs and both numbers.
    """
    channels = reference.latent.shape[1]
    if channels != base.latent_channels:
        raise LivePhotoError(
            f"the reference latent has {channels} channels, the MODEL takes {base.latent_channels}: encode the photo with its VAE"
        )
    for text, _ in conditioning:
        if text.shape[-1] != base.context_width:
            raise LivePhotoError(
                f"the empty text is {text.shape[-1]} wide, the MODEL takes {base.context_width}: encode it with the MODEL's CLIP"
            )
        if len(text) != 1:
            raise LivePhotoError(
                f"the empty text has rows for {len(text)} frames, inversion takes one row: connect CLIP Text Encode without "
                "Re-weight Motion Text"
            )


class LivePhotoPriorInversion(io.ComfyNode):
    """Adds Inv(r0) to a reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoPriorInversion",
            display_name="Invert Reference Latent",
            category="LivePhoto",
            description="Finds the noise that the photo comes from: Prior Noise mixes a trace of it into the clip's noise.",
            inputs=[
                io.Model.Input("model", tooltip="The base MODEL, from before Apply LivePhoto."),
                io.Conditioning.Input("empty_text", tooltip="CLIP Text Encode of an empty text."),
                ReferenceType.Input("reference", tooltip="From Encode Reference Photo."),
                io.Int.Input(
                    "steps", default=20, min=1, max=999, tooltip="Steps of the inversion, a UNet call on one picture each."
                ),
            ],
            outputs=[ReferenceType.Output(display_name="reference", tooltip="The same reference, with its inverted latent.")],
        )

    @classmethod
    def execute(cls, model: Any, empty_text: Any, reference: Reference, steps: int) -> io.NodeOutput:
        if model.get_additional_models_with_key(KEY):
            raise LivePhotoError("Invert Reference Latent needs the base MODEL: connect the MODEL from before Apply LivePhoto")
        check_inversion(base_shape(model), empty_text, reference)
        return io.NodeOutput(replace(reference, inverted=invert(model, empty_text, reference.latent, steps)))
