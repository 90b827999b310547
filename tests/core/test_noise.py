from dataclasses import replace

import pytest
import torch

from livephoto_core.checkpoint import load_adapter
from livephoto_core.config import AdapterConfig, Parts, noise_shares
from livephoto_core.noise import share_at, share_noise
from livephoto_core.pipeline import LivePhoto, Settings


@pytest.fixture
def noise():
    return torch.randn(2, 5, 4, 64, 64, generator=torch.Generator().manual_seed(0))


def correlations(clip):
    """Between the frames of a clip [F, ...]: [F, F]."""
    return torch.corrcoef(clip.flatten(1))


def test_no_share_gives_the_noise_back(noise):
    assert torch.equal(share_noise(noise, 0.0), noise)


def test_frames_have_the_share_of_the_variance_in_common(noise):
    shared = share_noise(noise, 0.36)
    assert torch.allclose(shared.flatten(2).var(2), torch.ones(2, 5), atol=0.04)
    for clip in shared:
        found = correlations(clip)
        assert torch.allclose(found[0, 1:], torch.full((4,), 0.6), atol=0.03)
        others = found[1:, 1:][~torch.eye(4, dtype=torch.bool)]
        assert torch.allclose(others, torch.full((12,), 0.36), atol=0.03)
    assert torch.equal(shared[:, 0], noise[:, 0])


def test_all_of_it_is_one_noise_for_all_frames(noise):
    assert torch.equal(share_noise(noise, 1.0), noise[:, :1].expand_as(noise))


def test_what_hardly_moves_shares_more():
    levels = torch.tensor([1.0, 5.5, 10.0])
    assert torch.allclose(share_at(levels, 0.5, 0.9), torch.tensor([0.9, 0.7, 0.5]))
    # the same where nothing is said of it
    assert torch.allclose(share_at(levels, 0.5, 0.0), torch.full((3,), 0.5))
    # rounding ends beyond 1 for some of these
    assert max(float(share_at(levels, n / 1000, 1.0).max()) for n in range(100)) == 1


def test_weights_that_know_no_levels_have_one_share_for_all():
    config = AdapterConfig(shared_noise=0.5, shared_noise_still=0.95)
    bare = replace(config, parts=Parts(intensity=False))
    levels = torch.tensor([[1.0, 10.0]])
    assert torch.allclose(noise_shares(config, levels), torch.tensor([[0.95, 0.5]]))
    assert torch.allclose(noise_shares(bare, levels), torch.tensor([[0.5, 0.5]]))


def test_half_precision_keeps_a_share_close_to_one():
    own = torch.randn(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    shared = share_noise(own.bfloat16(), 0.999).float()
    assert (shared[0, 1] - shared[0, 0]).std() == pytest.approx((2 - 2 * 0.999**0.5) ** 0.5, rel=0.1)


def test_each_frame_may_have_a_share_of_its_own(noise):
    shares = torch.tensor([[1.0, 0.0, 0.25, 1.0, 0.5], [0.0, 0.5, 0.5, 0.5, 0.5]])
    shared = share_noise(noise, shares)
    assert torch.equal(shared[0, 1], noise[0, 1]) and torch.equal(shared[0, 3], noise[0, 0])
    assert torch.allclose(shared[0, 2], share_noise(noise, 0.25)[0, 2])
    assert torch.allclose(shared[1], share_noise(noise, 0.5)[1])


def test_sampling_shares_the_noise_as_the_checkpoint_says(tiny_base, tiny_adapter_file):
    """What the UNet is first given: the reference plays no part in its noisy latents."""
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = []
    for share, still in ((0.0, 0.0), (0.6, 0.0), (0.5, 0.95)):
        model = LivePhoto(tiny_base, load_adapter(tiny_adapter_file))
        model.adapter.config = replace(model.adapter.config, shared_noise=share, shared_noise_still=still)
        hook = tiny_base.unet.register_forward_pre_hook(lambda unet, args: given.append(args[0].clone()))
        model.animate(photo, Settings("camera pans left", intensity=4, steps=1, cfg=1.0, frames=5, prior_start=0.0, prior_end=0.0))
        hook.remove()
    own, shared, by_level = given
    assert torch.allclose(shared, share_noise(own[None], 0.6)[0], atol=1e-6)
    assert torch.allclose(by_level, share_noise(own[None], 0.8)[0], atol=1e-6)
    assert not torch.allclose(shared, own, atol=0.1)
