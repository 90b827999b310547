"""Shutting the padding of texts in the text re-weighter."""

import shutil

import torch

from livephoto_core.base import load_base
from livephoto_core.checkpoint import load_adapter
from livephoto_core.demo import padding
from livephoto_core.demo.padding import fit_padding, mixed_texts, shut_padding
from livephoto_core.model.reweight import TextReweighter
from livephoto_core.training.run import token_ids_of


def test_mixed_texts_are_of_the_same_words_in_other_orders():
    texts = ["snow falls", "the camera pans left"]
    mixed = mixed_texts(texts)
    assert mixed == mixed_texts(texts) and mixed != mixed_texts(texts, seed=1)
    assert {word for text in mixed for word in text.split()} == {"snow", "falls", "the", "camera", "pans", "left"}
    assert {len(text.split()) for text in mixed} == set(range(1, 11))


def test_padding_is_shut_and_words_keep_what_they_weigh():
    torch.manual_seed(0)
    reweight = TextReweighter(16, 4, layers=1, heads=2)
    is_padding = torch.arange(12) >= torch.randint(2, 10, (64, 1))
    text = torch.randn(64, 12, 16)
    text[..., :4] += 4 * is_padding[..., None]
    # words that weigh differently, as learnt ones do
    torch.nn.init.normal_(reweight.to_frames.weight, std=0.6)
    with torch.no_grad():
        before = reweight(text, 4).mean(1)
    fit_padding(reweight, text, is_padding, steps=1000)
    with torch.no_grad():
        after = reweight(text, 4).mean(1)
    assert before[~is_padding].std() > 0.1 and before[is_padding].mean() > 0.3
    assert after[is_padding].mean() < 0.05
    assert (after - before)[~is_padding].abs().mean() < 0.3 * before[~is_padding].std()


def test_a_model_folder_keeps_everything_but_its_re_weighter(tiny_base_folder, tiny_adapter_file, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base_folder, folder)
    shutil.copy(tiny_adapter_file, folder / "adapter.safetensors")
    monkeypatch.setattr(padding, "STEPS", 400)
    texts = ["camera pans left", "snow falls"]
    shut_padding(folder, texts)
    old, new = (load_adapter(path, dtype=None).state_dict() for path in (tiny_adapter_file, folder / "adapter.safetensors"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("reweight.") for name in changed)
    assert all(old[name].dtype == new[name].dtype for name in old)
    base, reweight = load_base(folder), load_adapter(folder / "adapter.safetensors").reweight
    ids = token_ids_of(base.tokenizer, texts, 77)
    with torch.no_grad():
        weights = reweight(base.text_encoder(ids).last_hidden_state, 2).mean(1)
    assert weights[:, -40:].mean() < 0.5 * weights[:, 1].mean()
