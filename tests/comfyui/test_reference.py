"""Encode Reference Photo: its tokens are of what the clip shows, as the core's are."""

import pytest
import torch
from einops import rearrange

from livephoto_core.encoding import photo_tokens


@pytest.fixture(scope="module")
def results(inside):
    return inside("reference")


def difference(tokens, others):
    return float((tokens - others).square().mean().sqrt() / others.std())


def test_the_demos_encoder_has_what_comfyuis_own_has(results):
    found = results("stock_encoder")
    # newer ComfyUI's has these
    assert {*found["stock"], "model_type", "config", "naf"} <= {*found["demo"]}


@pytest.mark.parametrize("name", ["tall_crop", "tall_pad", "square_crop", "stretch", "own_shape"])
def test_clip_vision_sees_the_photo_as_the_clip_shows_it(results, demo, name):
    found, (base, adapter) = results(name), demo
    pictures = rearrange(found["picture"], "b h w c -> b c h w")
    with torch.no_grad():
        tokens, _ = photo_tokens(base.image_encoder, pictures, adapter.config.content)
    print(f"{name}: {difference(found['tokens'], tokens):.4f}")
    # eight bits a colour in ComfyUI
    assert difference(found["tokens"], tokens) < 0.02


@pytest.mark.parametrize("name", ["square_crop", "stretch", "own_shape"])
def test_an_output_of_the_same_view_is_as_good(results, name):
    found, output = results(name), results(f"{name}_by_output")
    print(f"{name}: {difference(output['tokens'], found['tokens']):.4f}")
    # the encoder saw the photo before it was made smaller, and smaller
    assert difference(output["tokens"], found["tokens"]) < 0.15
    assert difference(results("tall_crop")["tokens"], found["tokens"]) > 0.2
    assert torch.equal(output["latent"], found["latent"])


def test_sizes_of_which_a_vae_would_cut_a_part_are_refused(results):
    found = results("sizes")
    assert "width is 66" in found["66x64"]["message"] and "take 64" in found["66x64"]["message"]
    assert "height is 500" in found["64x500"]["message"] and "take 496" in found["64x500"]["message"]
