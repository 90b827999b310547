"""The six condition channels and what else a clip's UNet calls share (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from .config import AdapterConfig
from .errors import LivePhotoError


@dataclass(frozen=True)
class ClipCondition:
    """What the adapter needs to know of a batch of clips.

    latent: reference latents [B, C, h, w], scaled as the UNet's latents are.
    tokens: patch tokens of the reference photos [B, rows * columns, D], without the class token; [1, ...] for one photo in all.
        An adapter without content attention needs none: [1, 0, D].
    grid: (rows, columns) of the tokens.
    levels: motion intensity [B, F], 1..10, a level for each frame.
    places: the frames' numbers [F] in the clip of `length` frames they were taken from; None for a whole clip.
    """

    latent: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    levels: torch.Tensor
    places: torch.Tensor | None = None
    length: int = 0

    @property
    def frames(self) -> int:
        """Frames of each clip in the batch."""
        return self.levels.shape[1]

    @property
    def position(self) -> torch.Tensor:
        """The frame embedding [F] of these frames."""
        if self.places is None:
            return frame_embedding(self.frames)
        return frame_embedding(self.length).to(self.places.device)[self.places]

    def repeated(self, times: int) -> ClipCondition:
        """The same clips `times` over, as a batch for classifier-free guidance has them."""
        return ClipCondition(
            repeat(self.latent, "b c h w -> (t b) c h w", t=times),
            # every frame looks at them on its own, so that one photo need not be there twice
            self.tokens if len(self.tokens) == 1 else repeat(self.tokens, "b n d -> (t b) n d", t=times),
            self.grid,
            repeat(self.levels, "b f -> (t b) f", t=times),
            self.places,
            self.length,
        )


def check_condition(condition: ClipCondition, config: AdapterConfig) -> None:
    """Refuse a condition that an adapter with this config cannot take.

    Raises:
        LivePhotoError: names what does not fit, both numbers and what to do.
    """
    clips, channels = condition.latent.shape[:2]
    photos, places, width = condition.tokens.shape
    if channels != config.base.latent_channels:
        raise LivePhotoError(
            f"the reference latent has {channels} channels, the LivePhoto checkpoint's base has {config.base.latent_channels}: "
            "encode the photo with that base's VAE"
        )
    if width != config.content.token_width:
        raise LivePhotoError(
            f"the photo's tokens are {width} wide, the LivePhoto checkpoint needs {config.content.token_width}: "
            f"encode the photo with {config.content.encoder}"
        )
    if places != condition.grid[0] * condition.grid[1]:
        raise LivePhotoError(
            f"the photo has {places} tokens, its grid is {condition.grid[0]}x{condition.grid[1]}: leave out the class token"
        )
    if photos not in (1, clips):
        raise LivePhotoError(
            f"there are tokens of {photos} photos for {clips} reference latents: give the tokens of one photo, or of one a latent"
        )
    if len(condition.levels) != clips:
        raise LivePhotoError(
            f"there are levels for {len(condition.levels)} clips, and {clips} reference latents: give each clip a row of levels"
        )
    if condition.frames > config.motion.max_frames:
        raise LivePhotoError(
            f"the clip has {condition.frames} frames, the LivePhoto checkpoint takes {config.motion.max_frames} at once: "
            "ask for fewer"
        )


def frame_embedding(frames: int) -> torch.Tensor:
    """[F], linear from 0 at the first frame to 1 at the last.

    Raises:
        LivePhotoError: fewer than two frames.
    """
    if frames < 2:
        raise LivePhotoError(f"a clip has at least 2 frames, got {frames}: ask for 2 or more")
    return torch.linspace(0, 1, frames)


def even_levels(level: float, clips: int, frames: int) -> torch.Tensor:
    """[B, F] of one level."""
    return torch.full((clips, frames), float(level))


def stem_channels(latent: torch.Tensor, position: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Reference latent (C), frame embedding (1) and intensity (1) for every frame.

    Args:
        latent: [B, C, h, w] reference latents.
        position: [F] or [B, F] frame embedding, 0..1.
        levels: [B, F] intensity, the level's number itself.

    Returns:
        [(b f), C + 2, h, w].
    """
    clips, frames = levels.shape
    height, width = latent.shape[2:]
    position = position.to(latent).expand(clips, frames)
    maps = torch.stack([position, levels.to(latent)], dim=2)
    return rearrange(
        torch.cat(
            [
                repeat(latent, "b c h w -> b f c h w", f=frames),
                repeat(maps, "b f m -> b f m h w", h=height, w=width),
            ],
            dim=2,
        ),
        "b f c h w -> (b f) c h w",
    )
