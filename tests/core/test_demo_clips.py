"""The procedural clips that the demo learns from."""

import numpy as np
import pytest
import torch

from livephoto_core.demo.clips import ClipSet
from livephoto_core.demo.motions import THING
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import ODD_NAMES, SHAPES, odd_outline, shape_mask


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(0)
    return [Photo("noise", (255 * torch.rand(3, 80, 96, generator=generator)).byte())]


def test_odd_outlines_are_many_whole_and_large_enough_to_see():
    masks = [shape_mask(odd_outline(np.random.default_rng(seed))) for seed in range(60)]
    areas = np.array([mask.mean() for mask in masks])
    assert areas.min() > 0.04 and areas.max() < 0.64
    assert len({mask.tobytes() for mask in masks}) == 60
    reach = max(abs(value) for seed in range(60) for point in odd_outline(np.random.default_rng(seed)) for value in point)
    assert 0.8 < reach <= 1


def test_things_of_odd_shape_are_none_of_the_named(photos):
    odd, plain = ClipSet(photos, SHAPES, odd_share=1.0), ClipSet(photos, SHAPES)
    named = [shape_mask(outline) for outline in SHAPES.values()]
    things = [odd.scene(index, THING[index % len(THING)])[0].thing for index in range(20)]
    assert all(min(np.abs(thing.sprite[3].numpy() - mask).mean() for mask in named) > 0.01 for thing in things)
    assert {thing.name for thing in things} <= {*ODD_NAMES, *SHAPES} and len({thing.name for thing in things}) > 5
    again = odd.scene(3, THING[3])[0].thing
    assert torch.equal(again.sprite, things[3].sprite) and again.name == things[3].name
    usual = plain.scene(3, THING[3])[0].thing
    assert min(np.abs(usual.sprite[3].numpy() - mask).mean() for mask in named) == 0


def test_mirrored_photographs(photos):
    mirrored = ClipSet(photos, SHAPES, mirror_share=1.0).scene(0, "pan left")[0].backdrop
    assert torch.equal(mirrored, ClipSet(photos, SHAPES).scene(0, "pan left")[0].backdrop.flip(-1))
