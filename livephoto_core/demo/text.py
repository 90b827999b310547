"""The demo's text side: a BPE tokenizer of its own and a small CLIP-layout text encoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def train_tokenizer(corpus: Iterable[str], vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A lower-case BPE with CLIP's start and end tokens and its length of 77; any text is encodable, letter by letter."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,!?'-*")
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[START, END],
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokenizer.token_to_id(START)), (END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=END, model_max_length=LENGTH
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast, width: int = 96) -> CLIPTextModel:
    """The untrained text encoder: token ids [B, 77] -> embeddings [B, 77, width]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def teach_words(text_encoder: CLIPTextModel, ids: torch.Tensor, steps: int, batch: int = 32, rate: float = 1e-3) -> None:
    """Teach the encoder to keep a caption's words in every position from its end on: token ids [N, 77] of captions.

    From a random start the words of a short caption drown in seventy positions of padding, and the UNet learns for thousands of
    steps without a text. CLIP's own pretraining does the same for its last position.
    """
    torch.manual_seed(0)
    config = text_encoder.config
    head = nn.Linear(config.hidden_size, config.vocab_size)
    parameters = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(range(steps), desc="text encoder")
    for _ in bar:
        chosen = ids[torch.randint(len(ids), (batch,), generator=generator)]
        words = torch.zeros(batch, config.vocab_size).scatter_(1, chosen, 1.0)
        # eight of the positions after the text are enough to teach them all
        places = torch.randint(24, LENGTH, (8,), generator=generator)
        found = head(text_encoder(chosen).last_hidden_state[:, places])
        loss = nn.functional.binary_cross_entropy_with_logits(found, words[:, None].expand_as(found), pos_weight=torch.tensor(20.0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
