"""More phrasings for the demo: the vocabulary put together from parts, and the text encoder that learns it from its own model."""

import pytest
import torch

from livephoto_core.base import load_base
from livephoto_core.checkpoint import load_adapter
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.demo import clip_cache, padding, rephrase
from livephoto_core.demo.captions import TEMPLATES, UNSEEN, read_caption
from livephoto_core.demo.motions import THING
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.phrasings import phrasings
from livephoto_core.demo.rephrase import Rewording, reworded
from livephoto_core.errors import LivePhotoError
from livephoto_core.training.cache import CachedClips, finish_cache
from livephoto_core.training.run import token_ids_of


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory):
    """Clips encoded by the shipped demo's own parts."""
    noise = [Photo("noise", (255 * torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))).byte())]
    cache = tmp_path_factory.mktemp("rephrase") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_cache, "package_photos", lambda: (noise, noise))
        clip_cache.make_share(DEMO_FOLDER, cache, 32, 0, 1)
    finish_cache(cache, 32, clip_cache.origin_of(DEMO_FOLDER))
    return cache


def test_many_phrasings_and_none_of_those_kept_for_measuring():
    found = phrasings()
    assert list(found) == list(TEMPLATES)
    for motion, texts in found.items():
        assert set(TEMPLATES[motion]) < set(texts) and len(texts) >= 7
        assert not set(texts) & {text for unseen in UNSEEN.values() for text in unseen}
        assert all(("{thing}" in text) == (motion in THING) and "  " not in text for text in texts)
    everything = [text for texts in found.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_a_caption_taken_apart():
    said = read_caption("a red arrow moving to the left")
    assert (said.motion, said.thing, said.ball, said.place) == ("move left", "red arrow", "", "")
    said = read_caption("a blue ball pops up in a green kitchen")
    assert (said.motion, said.ball, said.place) == ("ball appears", "blue", " in a green kitchen")
    assert read_caption("a dog runs") is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [("the red arrow moves left", "red arrow"), ("camera pans up in a blue city", " in a blue city"), ("snow falls", "")],
)
def test_rewording_keeps_what_is_said_and_of_what(text, kept):
    vocabulary, generator = phrasings(), torch.Generator().manual_seed(0)
    found = {reworded(text, vocabulary, generator) for _ in range(40)}
    assert len(found) > 4 and all(kept in new for new in found)
    said = read_caption(text)
    known = {phrasing.format(thing=said.thing, ball=said.ball) + said.place for phrasing in vocabulary[said.motion]}
    assert found <= known
    assert reworded("a dog runs", vocabulary, generator) == "a dog runs"


def test_a_step_has_known_texts_and_what_shall_mean_the_same(demo_cache, monkeypatch):
    monkeypatch.setattr(rephrase, "BATCH", 24)
    base = load_base(DEMO_FOLDER)
    thresholds = load_adapter(DEMO_FOLDER / "adapter.safetensors").config.ssim_thresholds
    rewording = Rewording(CachedClips(demo_cache), base.tokenizer, thresholds, 0)
    batch, ids = rewording.step(0)
    empty = (batch.text_ids == rewording.batches.empty_ids).all(1)
    same = (batch.text_ids == ids).all(1)
    assert torch.equal(ids, rewording.step(0)[1]) and not torch.equal(ids, rewording.step(1)[1])
    assert 0 < int(empty.sum()) < 12 and bool(same[empty].all())
    assert 4 < int((~same).sum()) < 24 and bool(same[~empty].any())


def test_only_the_text_encoder_learns(demo_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(padding, "STEPS", 3)
    monkeypatch.setattr(rephrase, "BATCH", 2)
    cache, out = demo_cache, tmp_path / "out"
    rephrase.rephrase(DEMO_FOLDER, cache, out, steps=2)
    with pytest.raises(LivePhotoError, match="is there already"):
        rephrase.rephrase(DEMO_FOLDER, cache, out, steps=2)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in DEMO_FOLDER.iterdir())
    old, new = load_base(DEMO_FOLDER), load_base(out)
    ids = token_ids_of(old.tokenizer, ["camera pans left"], 77)
    assert not torch.equal(old.text_encoder(ids).last_hidden_state, new.text_encoder(ids).last_hidden_state)
    for part in ("unet", "vae", "image_encoder"):
        before, after = getattr(old, part).state_dict(), getattr(new, part).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    adapters = [load_adapter(folder / "adapter.safetensors").state_dict() for folder in (DEMO_FOLDER, out)]
    changed = {name.partition(".")[0] for name, value in adapters[0].items() if not torch.equal(value, adapters[1][name])}
    assert changed == {"reweight"}
    with pytest.raises(LivePhotoError, match="0 steps"):
        rephrase.rephrase(DEMO_FOLDER, cache, tmp_path / "more", steps=0)
    with pytest.raises(LivePhotoError, match="no cached clips"):
        rephrase.rephrase(DEMO_FOLDER, tmp_path, tmp_path / "more", steps=1)
