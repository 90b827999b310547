"""Re-weighting the text: how much each word counts in each frame (paper section 3.5)."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from einops import rearrange

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.model.reweight import apply_weights
from .bars import bars_picture
from .checks import check_numbers
from .types import LoadedModel, ModelType

# CLIP reads a text in chunks of so many tokens, start and end included
CHUNK = 77
# where a CONDITIONING tells for how many frames it has rows: of a batch of clips, the rows alone do not
FRAMES = "livephoto_frames"


def weigh(text: torch.Tensor, livephoto: LoadedModel, frames: int) -> torch.Tensor:
    """The weight of each token in each frame [1, frames, L] for a text [1, L, D] of one or more chunks.

    Raises:
        LivePhotoError: a text of another width, that is no whole number of chunks, or that has rows for frames already.
    """
    width = livephoto.config.base.context_width
    if text.shape[-1] != width:
        raise LivePhotoError(
            f"the text is {text.shape[-1]} wide, the LivePhoto checkpoint needs {width}: encode it with the CLIP of the MODEL"
        )
    if len(text) != 1:
        raise LivePhotoError(
            f"this CONDITIONING has {len(text)} rows already: re-weight a text once, before anything that batches it"
        )
    if text.shape[1] % CHUNK:
        raise LivePhotoError(f"the text has {text.shape[1]} tokens, CLIP gives {CHUNK} a chunk: connect CLIP Text Encode's output")
    comfy.model_management.load_models_gpu([livephoto.patcher])
    chunks = rearrange(text, "1 (k l) d -> k l d", l=CHUNK).to(livephoto.patcher.load_device, torch.float32)
    with torch.no_grad():
        weights = livephoto.adapter.reweight(chunks, frames)
    return rearrange(weights, "k f l -> 1 f (k l)").to(text)


def word_weights(clip: Any, text: str, weights: torch.Tensor) -> list[tuple[str, float]]:
    """Each word of a text with the mean weight [L] of its tokens; words as the CLIP's tokenizer ends them."""
    chunks = next(iter(clip.tokenize(text).values()))
    special = {token for token, _ in next(iter(clip.tokenize("").values()))[0]}
    words: list[tuple[str, list[float]]] = []
    whole = True
    for (token, _), weight in zip((pair for chunk in chunks for pair in chunk), weights.tolist(), strict=False):
        if not isinstance(token, int) or token in special:
            continue
        piece = clip.tokenizer.untokenize([(token, 1.0)])[0][1]
        if whole:
            words.append(("", []))
        name, found = words[-1]
        words[-1] = (name + piece.removesuffix("</w>"), [*found, weight])
        whole = piece.endswith("</w>")
    return [(name, sum(found) / len(found)) for name, found in words]


class LivePhotoTextReweight(io.ComfyNode):
    """A text a frame: each token's embedding times its weight in that frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoTextReweight",
            display_name="Re-weight Motion Text",
            category="LivePhoto",
            description="Lets words of motion count and words of content count less, frame by frame, as LivePhoto learnt it.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From CLIP Text Encode; give the negative text a node of its own."),
                ModelType.Input("livephoto_model", tooltip="From Load LivePhoto Model or Load LivePhoto Demo."),
                io.Int.Input(
                    "frames", default=16, min=2, max=1024, tooltip="Frames of the clip: as many as the latent's batch size."
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="1 is as trained, 0 leaves the text as it is."
                ),
                io.Clip.Input("clip", optional=True, tooltip="With the text: to show the weights under their words."),
                io.String.Input(
                    "text",
                    optional=True,
                    default="",
                    force_input=True,
                    tooltip="The text that was encoded, to show its words' weights.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="A row for each frame; for any sampler."),
                io.Image.Output(display_name="weights_image", tooltip="A bar for each word, or for each token without a text."),
                io.String.Output(display_name="weights", tooltip="The weights as text, a word a line."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: list,
        livephoto_model: LoadedModel,
        frames: int,
        strength: float,
        clip: Any = None,
        text: str = "",
    ) -> io.NodeOutput:
        check_numbers(strength=strength)
        weighed, shown = [], torch.zeros(0)
        for embedding, options in conditioning:
            weights = weigh(embedding, livephoto_model, frames)
            weighed.append([apply_weights(embedding, weights, strength), {**options, FRAMES: frames}])
            shown = shown if len(shown) else weights[0].mean(0)
        words = word_weights(clip, text, shown) if clip is not None and text else []
        bars = words or [(str(i), float(w)) for i, w in enumerate(shown[:CHUNK])]
        picture = bars_picture(bars)
        listing = "\n".join(f"{name} {weight:.2f}" for name, weight in bars)
        return io.NodeOutput(weighed, picture, listing, ui=ui.PreviewImage(picture, cls=cls))
