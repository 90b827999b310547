"""Clips whose level tells how fast a thing spins."""

import math

import numpy as np
import pytest
import torch

from livephoto_core.demo.clips import ClipSet
from livephoto_core.demo.motions import REFERENCE_SIDE
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import SHAPES
from livephoto_core.demo.telling import TellingClips, spin_rate
from livephoto_core.intensity import clip_ssim


@pytest.fixture(scope="module")
def photos():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12, generator=generator), 96, mode="bicubic")[0].clamp(0, 1)
    return [Photo("smooth", (255 * smooth).byte())]


def off_the_rate(clip):
    """How far, in logarithms, a spin's rate is from what its clip's 1 - SSIM stands for."""
    rate = clip.speed * 2 / REFERENCE_SIDE / clip.scene.thing.start.half
    return math.log(rate / spin_rate(1 - float(clip_ssim(clip.frames))))


def test_spins_of_a_level_go_as_fast_as_it_says(photos):
    common = {"frames": 8, "size": 32, "seed": 5}
    told, plain = (
        [abs(off_the_rate(clips.clip(index, "spin"))) for index in range(8)]
        for clips in (TellingClips(photos, SHAPES, **common), ClipSet(photos, SHAPES, **common))
    )
    assert np.median(told) < 0.15 and max(told) < 0.6
    assert np.median(plain) > 0.4


def test_a_spin_is_the_same_again_and_another_by_another_index(photos):
    clips = TellingClips(photos, SHAPES, frames=4, size=32)
    first, again, other = clips.clip(3, "spin"), clips.clip(3, "spin"), clips.clip(4, "spin")
    assert torch.equal(first.frames, again.frames) and first.caption == again.caption and first.speed == again.speed
    assert not torch.equal(first.frames, other.frames)


def test_other_motions_are_those_of_the_plain_set(photos):
    told, plain = (kind(photos, SHAPES, frames=4, size=32, thing_share=0.5) for kind in (TellingClips, ClipSet))
    drawn = [(told.clip(index), plain.clip(index)) for index in range(12)]
    assert all(torch.equal(a.frames, b.frames) and a.caption == b.caption for a, b in drawn if b.scene.motion != "spin")
    assert sum(b.scene.motion != "spin" for _, b in drawn) > 8
