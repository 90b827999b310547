"""Texts, pictures and photos as the parts of a base see them, and latents as pictures again."""

from __future__ import annotations

import warnings

import torch
from einops import rearrange
from torch import nn

from .base import Base
from .config import AdapterConfig, ContentShape
from .errors import LivePhotoError
from .media import fit_image

# ImageNet's statistics, as DINOv2's preprocessing has them
PHOTO_MEAN = (0.485, 0.456, 0.406)
PHOTO_STD = (0.229, 0.224, 0.225)


def encode_text(base: Base, texts: list[str]) -> torch.Tensor:
    """Texts as the UNet's cross-attention sees them: last hidden state after the final norm [B, 77, D].

    Padded with the tokenizer's own padding. A text that is too long is cut, and a warning names what was cut.
    """
    length = text_length(base)
    for text in texts:
        if lost := overlong_text(base, text):
            warnings.warn(f"the text encoder reads {length} tokens, cut off: {lost!r}", stacklevel=2)
    ids = base.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return base.text_encoder(ids.to(base.device)).last_hidden_state


def text_length(base: Base) -> int:
    """Tokens that the text encoder reads, start and end included."""
    return base.text_encoder.config.max_position_embeddings


def overlong_text(base: Base, text: str) -> str:
    """The end of a text that the text encoder has no room for; empty where it fits."""
    ids = base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return base.tokenizer.decode(ids[text_length(base) - 2 :]) if len(ids) > text_length(base) - 2 else ""


def encode_photo(base: Base, frames: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, S, S], 0..1, as latents of the base, see `encode_pictures`."""
    return encode_pictures(base.vae, frames)


def encode_pictures(vae: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, S, S], 0..1, as latents [N, C, S / factor, S / factor] in the UNet's scale (the posterior's mean)."""
    pictures = pictures.to(next(vae.parameters()))
    return vae.encode(2 * pictures - 1).latent_dist.mean.float() * vae.config.scaling_factor


def decode(base: Base, latents: torch.Tensor, slice: int = 8) -> torch.Tensor:
    """Latents [N, C, h, w] of the base as pictures [N, 3, S, S], 0..1, see `decode_latents`."""
    return decode_latents(base.vae, latents, slice)


def decode_latents(vae: nn.Module, latents: torch.Tensor, slice: int = 8) -> torch.Tensor:
    """Latents [N, C, h, w] in the UNet's scale as pictures [N, 3, S, S], 0..1; `slice` at a time, which bounds memory."""
    parts = (latents / vae.config.scaling_factor).to(next(vae.parameters())).split(slice)
    return torch.cat([(vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1) for part in parts])


def photo_tokens(
    image_encoder: nn.Module | None, photos: torch.Tensor, content: ContentShape
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Patch tokens of photos (paper section 3.2).

    Args:
        image_encoder: the DINOv2 that `content` names.
        photos: [B, 3, H, W], 0..1; brought to content.image_size, square, and to ImageNet's mean and deviation.
        content: the adapter's image branch.

    Returns:
        ([B, rows * columns, D], (rows, columns)), without the class token.

    Raises:
        LivePhotoError: no encoder, or not the one that the adapter was trained with.
    """
    if image_encoder is None:
        raise LivePhotoError(
            f"this LivePhoto checkpoint needs the image encoder {content.encoder}, and the base model has none: give its "
            "folder with --image-encoder"
        )
    found = image_encoder.config.patch_size, image_encoder.config.hidden_size
    if found != (content.patch_size, content.token_width):
        raise LivePhotoError(
            f"the image encoder has patches of {found[0]} px and width {found[1]}, the checkpoint was trained with "
            f"{content.patch_size} px and {content.token_width}: give the folder of {content.encoder}"
        )
    parameter = next(image_encoder.parameters())
    size = content.image_size
    photos = fit_image(photos.to(parameter), size, size, "stretch")
    tokens = image_encoder(normalised(photos)).last_hidden_state[:, 1:]
    side = size // content.patch_size
    return tokens, (side, side)


def adapter_tokens(
    image_encoder: nn.Module | None, photos: torch.Tensor, config: AdapterConfig
) -> tuple[torch.Tensor, tuple[int, int]]:
    """`photo_tokens` for an adapter; none at all, [1, 0, D] of a grid (0, 0), for one without content attention.

    Raises:
        LivePhotoError: as `photo_tokens`, where the adapter looks at tokens.
    """
    if config.parts.content:
        return photo_tokens(image_encoder, photos, config.content)
    return photos.new_zeros(1, 0, config.content.token_width), (0, 0)


def normalised(photos: torch.Tensor) -> torch.Tensor:
    """Photos [N, 3, H, W], 0..1, by ImageNet's mean and deviation, as an image encoder takes them."""
    mean, std = (rearrange(photos.new_tensor(v), "c -> c 1 1") for v in (PHOTO_MEAN, PHOTO_STD))
    return (photos - mean) / std
