"""Adapters that lack one of LivePhoto's parts, as the ablations train them."""

from dataclasses import replace

import pytest
import torch

from livephoto_core.checkpoint import expected_shapes, load_adapter, read_config, save_adapter
from livephoto_core.commands.inspect_file import describe
from livephoto_core.config import AdapterConfig, Parts, from_dict, from_json, to_json
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.errors import LivePhotoError
from livephoto_core.model.adapter import LivePhotoAdapter

NAMES = ("intensity", "frame_embedding", "content", "reweight")


@pytest.fixture
def without(tiny_config, randomised):
    """A random adapter without some parts; the others have the same weights whatever is missing."""

    def make(*names):
        whole = randomised(LivePhotoAdapter(tiny_config))
        adapter = LivePhotoAdapter(replace(tiny_config, parts=Parts(**dict.fromkeys(names, False))))
        kept = adapter.state_dict().keys()
        adapter.load_state_dict({name: value for name, value in whole.state_dict().items() if name in kept})
        return adapter.eval()

    return make


@pytest.fixture
def output(tiny_unet):
    """The UNet's output [F, 4, 8, 8] with an adapter under a condition."""

    @torch.no_grad()
    def run(adapter, condition):
        generator = torch.Generator().manual_seed(3)
        noisy, text = torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 5, 24, generator=generator)
        host = DiffusersHost(tiny_unet, adapter)
        with host, host.conditioned(condition):
            return tiny_unet(noisy, 500, text).sample

    return run


def same(a, b):
    return torch.allclose(a, b, atol=1e-6)


def test_without_intensity_the_level_changes_nothing(without, output, tiny_condition):
    condition = tiny_condition()
    other = replace(condition, levels=condition.levels.flip(1) + 1)
    assert not same(output(without(), condition), output(without(), other))
    assert same(output(without("intensity"), condition), output(without("intensity"), other))
    assert not same(output(without("frame_embedding"), condition), output(without("frame_embedding"), other))


def test_without_frame_embedding_the_place_in_the_clip_changes_nothing(without, tiny_condition):
    # the motion modules have positions of their own, so the stem is looked at alone
    for names, alike in (((), False), (("frame_embedding",), True)):
        stem = without(*names).stem
        channels = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
        moved = channels.clone()
        moved[:, 4] += 1
        assert same(stem(channels), stem(moved)) is alike


def test_without_content_the_photos_tokens_change_nothing(without, output, tiny_condition):
    condition = tiny_condition()
    other = replace(condition, tokens=condition.tokens + 1)
    assert not same(output(without(), condition), output(without(), other))
    bare = without("content")
    assert same(output(bare, condition), output(bare, other))
    assert bare.photo_keys_values(condition.tokens, condition.grid) == {}
    assert bare.parameter_counts()["content attention"] == 0


def test_without_reweighting_every_token_counts_fully(without):
    text = torch.randn(2, 7, 24)
    assert torch.equal(without("reweight").reweight(text, 5), torch.ones(2, 5, 7))
    assert without("reweight").parameter_counts()["text re-weighter"] == 0


def test_the_checkpoint_says_what_is_missing(without, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_adapter(without(*NAMES), path, dtype=torch.float32)
    loaded = load_adapter(path)
    assert loaded.config.parts.missing == NAMES == read_config(path).parts.missing
    assert not any(name.startswith(("content", "reweight")) for name in loaded.state_dict())
    assert "trained without" in "\n".join(describe(path, loaded.config))
    assert any("intensity, frame embedding, content, reweight" in line for line in describe(path, loaded.config))


def test_a_checkpoint_that_does_not_say_has_every_part(tiny_config):
    assert from_dict({}).parts == Parts() and from_dict({}).intensity_measure == "ssim"
    changed = replace(tiny_config, parts=Parts(content=False), intensity_measure="flow")
    assert from_json(to_json(changed)) == changed
    assert not any(name.startswith("content") for name in expected_shapes(changed))
    with pytest.raises(LivePhotoError, match="unknown names colour"):
        from_dict({"parts": {"colour": False}})
    with pytest.raises(LivePhotoError, match="'ssim', 'mse', 'flow'"):
        AdapterConfig(intensity_measure="dino")
