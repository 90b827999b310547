"""A frozen text encoder's captions, encoded once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from livephoto_core.base import load_base
from livephoto_core.errors import LivePhotoError
from livephoto_core.training import texts as module
from livephoto_core.training.run import token_ids_of
from livephoto_core.training.texts import CachedTexts, Texts, fill_texts, texts_folder

CAPTIONS = ["camera pans left", "camera pans right", "camera pans left", "the red ball moves up", ""]
CPU = torch.device("cpu")


@pytest.fixture
def base(tiny_base_folder):
    return load_base(tiny_base_folder)


@pytest.fixture
def ids(base):
    return token_ids_of(base.tokenizer, CAPTIONS, 77)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two texts a shard: four different ones take two."""
    monkeypatch.setattr(module, "SHARD", 2)


def filled(tmp_path, base, ids):
    texts = Texts(ids)
    folder = texts_folder(tmp_path, texts, base.text_encoder)
    fill_texts(folder, texts, base.text_encoder, CPU)
    return folder, texts


def test_cached_texts_are_what_the_encoder_makes_of_them(tmp_path, base, ids):
    folder, texts = filled(tmp_path, base, ids)
    assert len(list(folder.iterdir())) == 2
    with torch.no_grad():
        wanted = base.text_encoder(ids).last_hidden_state
    rows = [4, 0, 2, 3, 1]
    torch.testing.assert_close(CachedTexts(folder, texts).of(rows), wanted[rows], rtol=1e-3, atol=1e-3)


def test_what_is_there_is_not_encoded_again(tmp_path, base, ids):
    folder, texts = filled(tmp_path, base, ids)
    first, second = sorted(folder.iterdir())
    # marked, to be known again
    marked = {name: value + 1 for name, value in load_file(first).items()}
    save_file(marked, first)
    second.unlink()
    fill_texts(folder, texts, base.text_encoder, CPU)
    assert all(torch.equal(value, marked[name]) for name, value in load_file(first).items())
    assert second.is_file()


def test_other_captions_and_other_encoders_have_folders_of_their_own(tmp_path, base, ids):
    folder = texts_folder(tmp_path, Texts(ids), base.text_encoder)
    assert texts_folder(tmp_path, Texts(ids[:3]), base.text_encoder) != folder
    # the order of clips and how often they say the same are not the texts' affair
    assert texts_folder(tmp_path, Texts(ids.flip(0)), base.text_encoder) == folder
    with torch.no_grad():
        # one word's row, as a new word's training leaves the others
        base.text_encoder.get_input_embeddings().weight[7] += 1
    other = texts_folder(tmp_path, Texts(ids), base.text_encoder)
    assert other != folder
    base.text_encoder.config.hidden_act = "gelu"
    assert texts_folder(tmp_path, Texts(ids), base.text_encoder) not in (folder, other)


@pytest.mark.parametrize("what", ["missing", "damaged", "of another length"])
def test_texts_that_cannot_be_read_are_named(tmp_path, base, ids, what):
    folder, texts = filled(tmp_path, base, ids)
    path = sorted(folder.iterdir())[1]
    if what == "missing":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save_file({name: value[:1].clone() for name, value in load_file(path).items()}, path)
    with pytest.raises(LivePhotoError, match=f"{path.name}.* run again"):
        CachedTexts(folder, texts)
