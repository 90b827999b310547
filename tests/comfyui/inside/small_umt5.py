"""ComfyUI's own umt5 text encoder and tokenizer with few, random weights: what Load CLIP gives for umt5-xxl, but small.

ComfyUI fixes the size of what Load CLIP reads, 5.7 billion parameters; it takes other sizes only from code. As a file in
custom_nodes this adds a node for it.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import sentencepiece
import torch

# the width and the number of layers by which ComfyUI knows the encoder
SIZE = {"d_model": 4096, "num_layers": 24, "d_ff": 16, "d_kv": 8, "num_heads": 2}
FIXED = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5"}
TEXTS = ("a cat (small) runs over the grass", "the camera pans left: slow, then fast", "blurry, low quality, watermark")


def tokenizer() -> bytes:
    """A sentencepiece model that knows the letters of TEXTS, with umt5's special tokens."""
    found = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=found,
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return found.getvalue()


@functools.cache
def small_clip() -> Any:
    """The CLIP."""
    spiece = tokenizer()
    size = {**SIZE, "vocab_size": sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()}
    shapes = comfy.text_encoders.t5.T5({**size, **FIXED}, torch.float32, "meta", comfy.ops.disable_weight_init).state_dict()
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, tensor in shapes.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        tensors[name] = drawn * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 1 + 0.1 * drawn
    tensors["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    return comfy.sd.load_text_encoder_state_dicts(
        [tensors], clip_type=comfy.sd.CLIPType.WAN, model_options={"umt5xxl_model_config": size}
    )


class SmallUMT5:
    """Stands in for Load CLIP."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple:
        return (small_clip(),)


NODE_CLASS_MAPPINGS = {"SmallUMT5": SmallUMT5}
