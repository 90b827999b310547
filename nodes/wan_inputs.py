"""What LivePhoto-Wan2.1 is sampled with: the text at a motion level, and a latent clip that begins with the photo."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.model.wan_text import LEVELS, TEXT_ROWS, TEXT_WIDTH, check_wan_level
from .checks import check_choice, check_size
from .reference import FITS, fitted
from .wan_loader import WanText, WanTextType

# the key in a CONDITIONING's options that says which branch of the guidance it is
BRANCH = "livephoto_wan_branch"
CHANNELS, SPACE, TIME = 16, 8, 4
# the model takes 2x2 latent pixels at once
GRID = 2 * SPACE


def whole_rows(text: torch.Tensor) -> torch.Tensor:
    """A umt5 text [B, L, 4096] with its 512 rows, zeros after the prompt, as the model was trained.

    Raises:
        LivePhotoError: of another encoder, or too long.
    """
    if text.shape[-1] != TEXT_WIDTH:
        raise LivePhotoError(
            f"the text is {text.shape[-1]} wide, LivePhoto-Wan2.1 needs {TEXT_WIDTH}: encode it with umt5-xxl (Load CLIP, type wan)"
        )
    if text.shape[1] > TEXT_ROWS:
        raise LivePhotoError(f"the text has {text.shape[1]} tokens, LivePhoto-Wan2.1 takes {TEXT_ROWS}: shorten it")
    return F.pad(text, (0, 0, 0, TEXT_ROWS - text.shape[1]))


def at_level(wan_text: WanText, conditioning: list, level: int, branch: str) -> list:
    """CONDITIONING at a level 0..6, marked as a branch of the guidance; other options pass through.

    Raises:
        LivePhotoError: as `whole_rows`, or the text has a level already.
    """
    comfy.model_management.load_models_gpu([wan_text.patcher])
    found = []
    for text, options in conditioning:
        if BRANCH in options:
            raise LivePhotoError(
                "this CONDITIONING already went through Motion Intensity (Wan): connect CLIP Text Encode without it"
            )
        rows = whole_rows(text).to(wan_text.patcher.load_device, torch.float32)
        with torch.no_grad():
            found.append([wan_text.module(rows, level).to(text), {**options, BRANCH: branch}])
    return found


def clip_latent(photos: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    """The LATENT of clips that begin with encoded photos [B, 16, 1, h, w]: zeros, and a noise mask that keeps the first frame."""
    empty = photos.new_zeros(*photos.shape[:2], frames - 1, *photos.shape[3:])
    mask = photos.new_ones(len(photos), 1, frames, *photos.shape[3:])
    mask[:, :, 0] = 0
    return {"samples": torch.cat([photos, empty], dim=2), "noise_mask": mask}


def check_clip(width: int, height: int, length: int) -> None:
    """Refuse a size that Wan2.1 cannot make.

    Raises:
        LivePhotoError: names the value and the nearest that goes.
    """
    check_size(width, height, GRID)
    if length % TIME != 1:
        raise LivePhotoError(f"length is {length}, Wan2.1 makes 4n + 1 frames: take {-(-(length - 1) // TIME) * TIME + 1}")


class LivePhotoWanIntensity(io.ComfyNode):
    """Prompt and negative text as the three branches of the guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoWanIntensity",
            display_name="Motion Intensity (Wan)",
            category="LivePhoto/Wan2.1",
            description="Writes how strongly the clip moves into the text, for LivePhoto-Wan2.1: a level from 1 to 6.",
            inputs=[
                WanTextType.Input("wan_text", tooltip="From Load LivePhoto-Wan2.1."),
                io.Conditioning.Input("positive", tooltip="What moves and how: CLIP Text Encode with umt5-xxl."),
                io.Conditioning.Input("negative", tooltip="What to keep away from: CLIP Text Encode with umt5-xxl."),
                io.Int.Input(
                    "level",
                    default=LEVELS[-1],
                    min=LEVELS[0],
                    max=LEVELS[-1],
                    display_mode=io.NumberDisplay.slider,
                    tooltip="1 (weak) to 6 (strong); the authors' example uses 6.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt at the level."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative text without a level."),
                io.Conditioning.Output(
                    display_name="empty", tooltip="The prompt without a level: what the guidance measures the level against."
                ),
            ],
        )

    @classmethod
    def execute(cls, wan_text: WanText, positive: list, negative: list, level: int) -> io.NodeOutput:
        chosen = check_wan_level(level)
        return io.NodeOutput(
            at_level(wan_text, positive, chosen, "positive"),
            at_level(wan_text, negative, 0, "negative"),
            at_level(wan_text, positive, 0, "empty"),
        )


class LivePhotoWanReference(io.ComfyNode):
    """The photo as the first latent frame of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoWanReference",
            display_name="Reference Photo (Wan)",
            category="LivePhoto/Wan2.1",
            description="Makes the LATENT of a clip that begins with the photo, for LivePhoto-Wan2.1.",
            inputs=[
                io.Image.Input("image", tooltip="The photo to animate; several photos give a clip each."),
                io.Vae.Input("vae", tooltip="Wan2.1's VAE, from Load VAE."),
                io.Int.Input("width", default=832, min=GRID, max=2048, step=GRID, tooltip="Width of the clip in pixels."),
                io.Int.Input("height", default=480, min=GRID, max=2048, step=GRID, tooltip="Height of the clip in pixels."),
                io.Int.Input(
                    "length", default=81, min=1 + TIME, max=1001, step=TIME, tooltip="Frames of the clip; the authors make 81."
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    tooltip="How a photo of another shape comes to the size: cut at the sides, bars added, or stretched.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip to sample: the photo, then empty frames."),
                io.Image.Output(display_name="image", tooltip="The photo as the clip begins with it."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, vae: Any, width: int, height: int, length: int, fit: str) -> io.NodeOutput:
        check_choice("fit", fit, FITS)
        check_clip(width, height, length)
        photos = fitted(image, width, height, fit)
        # one by one: a video VAE takes a batch for the frames of one clip
        encoded = torch.cat([vae.encode(photo[None]) for photo in photos])
        expected = (CHANNELS, 1, height // SPACE, width // SPACE)
        if encoded.shape[1:] != expected:
            raise LivePhotoError(
                f"the VAE makes latents of {list(encoded.shape[1:])}, Wan2.1's are {list(expected)}: choose wan_2.1_vae in Load VAE"
            )
        latent = clip_latent(encoded, (length - 1) // TIME + 1)
        return io.NodeOutput(latent, photos, ui=ui.PreviewImage(photos, cls=cls))
