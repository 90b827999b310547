"""Teaches the text re-weighter to shut the padding, into which a text encoder that trains along writes the sentence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch

from ..base import load_base
from ..checkpoint import CONFIG_KEY, load_adapter, save_tensors
from ..config import to_json
from ..model.reweight import TextReweighter
from ..training.run import token_ids_of
from .text import LENGTH

SHUT_LOGIT = -5.5
STEPS, BATCH, RATE = 1400, 32, 1e-3
MIXED_TEXTS, MIXED_WORDS = 3000, 10


def mixed_texts(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Texts of 1 to 10 words in any order, out of the words of `texts`: nobody writes as the captions do alone."""
    words, draw = sorted({word for text in texts for word in text.split()}), random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(1, MIXED_WORDS))) for _ in range(MIXED_TEXTS)]


def fit_padding(reweight: TextReweighter, text: torch.Tensor, padding: torch.Tensor, steps: int, seed: int = 0) -> None:
    """Train the re-weighter alone until padding weighs next to nothing; every word keeps what it weighs.

    text: the text encoder's embeddings [N, L, D]. padding: where padding is [N, L].
    """
    before = deepcopy(reweight)
    optimizer = torch.optim.Adam(reweight.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        drawn = torch.randint(len(text), (BATCH,), generator=generator)
        logits, shut = reweight.logits(text[drawn]), padding[drawn]
        with torch.no_grad():
            kept = before.logits(text[drawn])
        loss = (logits[shut] - SHUT_LOGIT).relu().square().mean() + (logits - kept)[~shut].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def shut_padding(folder: Path, texts: Sequence[str]) -> None:
    """Fit the re-weighter of a model folder on texts, and on their words in any order; the rest of the adapter stays."""
    path = folder / "adapter.safetensors"
    base, adapter, stored = load_base(folder), load_adapter(path), load_adapter(path, dtype=None).state_dict()
    ids = token_ids_of(base.tokenizer, ["", *texts, *mixed_texts(texts)], LENGTH)
    with torch.no_grad():
        text = torch.cat([base.text_encoder(part).last_hidden_state for part in ids.split(256)])
    fit_padding(adapter.reweight, text, ids == ids[:, -1:], STEPS)
    tensors = {name: value.to(stored[name].dtype) for name, value in adapter.state_dict().items()}
    save_tensors(tensors, path, {CONFIG_KEY: to_json(adapter.config)})
