"""`livephoto inspect`: what a checkpoint is, how it weighs the words of a text, or what made a clip."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..base import Base
from ..checkpoint import load_adapter, read_config, read_metadata
from ..config import AdapterConfig, still_share, to_json
from ..encoding import encode_text, overlong_text
from ..errors import LivePhotoError
from ..measures import MOTION_NAMES
from ..media_write import CLIP_SUFFIXES, read_settings
from ..model.adapter import LivePhotoAdapter
from .model_files import DEMO, ModelFiles, load_model_base

_BAR_WIDTH = 32


def inspect_file(files: ModelFiles, text: str | None, as_json: bool = False) -> str:
    """Describe a checkpoint, or the settings in a clip that `livephoto animate` wrote, as text to print.

    Args:
        files: `adapter` names the file; the base is needed only with a text.
        text: whose words to weigh, None for none.
        as_json: machine-readable instead.

    Raises:
        LivePhotoError: a file that is neither, or a text that cannot be weighed.
    """
    if files.adapter != DEMO and Path(files.adapter).suffix.lower() in CLIP_SUFFIXES:
        return json.dumps(read_settings(files.adapter), indent=2, sort_keys=True)
    path = files.adapter_path
    config = read_config(path)
    words = [] if text is None else word_weights(load_model_base(files), load_adapter(path), text)
    if as_json:
        described = {"config": json.loads(to_json(config)), "metadata": read_metadata(path), "parameters": count_parameters(config)}
        return json.dumps({**described, "words": [{"word": word, "weight": weight} for word, weight in words]}, indent=2)
    return "\n".join([*describe(path, config), *([""] if words else []), *bars(words)])


def describe(path: Path, config: AdapterConfig) -> list[str]:
    """A checkpoint's file, shape, schedule and thresholds, a line each."""
    base, motion, content, schedule = config.base, config.motion, config.content, config.schedule
    counts = count_parameters(config)
    by = config.intensity_measure
    ends = config.ssim_thresholds if by == "ssim" else [1 - t for t in config.ssim_thresholds]
    thresholds = ", ".join(f"{end:.4g}" if by == "mse" else f"{end:.4f}" for end in ends)
    places = content.positions + ", centred" * (content.positions == "rope" and content.centred)
    of = "" if by == "ssim" else f" of {MOTION_NAMES[by]}"
    lines = {
        "file": f"{path} ({path.stat().st_size / 2**20:.1f} MiB)",
        "family": f"{config.family}, format version {config.format_version}",
        "clips": f"{config.frames} frames of {config.size}x{config.size} px, every {config.frame_stride}. frame of the source",
        "base UNet": f"{base.latent_channels} latent channels, levels of {', '.join(map(str, base.block_channels))} channels, "
        f"text width {base.context_width}",
        "motion": f"{motion.heads} heads, {motion.attention_blocks} attention blocks, up to {motion.max_frames} frames",
        "content": f"{content.encoder}, {content.image_size} px in patches of {content.patch_size}, positions {places}",
        "schedule": f"{schedule.kind} betas {schedule.beta_start:g} to {schedule.beta_end:g}, {schedule.timesteps} timesteps"
        + (f", predicts {config.prediction_type}" if config.prediction_type else ""),
        "noise": _noise_line(config),
        "levels": f"{thresholds}{of}, measured on {config.intensity_from}" if thresholds else "not calibrated",
        **({"trained without": ", ".join(config.parts.missing).replace("_", " ")} if config.parts.missing else {}),
        "parameters": f"{sum(counts.values()):,}",
        **{f"  {name}": f"{count:,}" for name, count in counts.items()},
        **{name: text for name, text in read_metadata(path).items() if len(text) <= 200},
    }
    width = max(map(len, lines))
    return [f"{name:<{width}}  {value}" for name, value in lines.items()]


def _noise_line(config: AdapterConfig) -> str:
    moving = config.shared_noise
    still = still_share(config) or moving
    if not still:
        return "each frame's own"
    share = f"{moving:g}" if still == moving else f"{still:g} (level 1) to {moving:g} (level 10)"
    return f"{share} of the variance shared by all frames"


def count_parameters(config: AdapterConfig) -> dict[str, int]:
    """Parameters of each part, without allocating any."""
    with torch.device("meta"):
        return LivePhotoAdapter(config).parameter_counts()


@torch.no_grad()
def word_weights(base: Base, adapter: LivePhotoAdapter, text: str) -> list[tuple[str, float]]:
    """Each word with the mean weight of its tokens over the clip's frames, 0..1 (paper section 3.5).

    Raises:
        LivePhotoError: an empty text, one too long, or a base of another text width.
    """
    words = text.split()
    if not words:
        raise LivePhotoError("the text is empty: give --text with words to weigh")
    if lost := overlong_text(base, text):
        raise LivePhotoError(f"the text has {len(words)} words, too many for the text encoder (from {lost[:40]!r} on): shorten it")
    embedded = encode_text(base, [text])
    if embedded.shape[-1] != adapter.config.base.context_width:
        raise LivePhotoError(
            f"the base's text embeddings are {embedded.shape[-1]} wide, the checkpoint's {adapter.config.base.context_width}: "
            "give the base that belongs to the checkpoint"
        )
    weights = adapter.reweight(embedded, adapter.config.frames)[0].mean(0)
    # byte pairs do not cross spaces, so a word alone has the tokens that it has in the text
    counts = [len(base.tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    shares = weights[1 : 1 + sum(counts)].split(counts)
    return [(word, float(share.mean())) for word, share in zip(words, shares, strict=True) if len(share)]


def bars(words: list[tuple[str, float]]) -> list[str]:
    """Weights as bars, a word a line."""
    width = max((len(word) for word, _ in words), default=0)
    return [f"{word:<{width}}  {weight:.2f}  {'█' * round(weight * _BAR_WIDTH)}" for word, weight in words]
