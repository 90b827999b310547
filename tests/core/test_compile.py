"""torch.compile on a UNet that the adapter is on: the same numbers, and no second compilation for a second clip."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.reweight import apply_weights


@pytest.fixture
def small_unet():
    """One block down, one up, one transformer, in the middle: tracing more takes long."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=24,
        norm_num_groups=8,
        attention_head_dim=4,
    ).eval()


def clip(host, condition, text, sample):
    """The outputs of two steps."""
    with torch.no_grad(), host, host.conditioned(condition):
        frames = text()
        return [host.unet(sample, torch.tensor(step), frames).sample for step in (300, 100)]


@pytest.mark.slow
@pytest.mark.parametrize("weighed", [False, True])
def test_compiled_unet(weighed, small_unet, tiny_config, randomised, tiny_condition):
    base = dataclasses.replace(tiny_config.base, block_channels=(16,), block_attention=(False,))
    motion = dataclasses.replace(tiny_config.motion, attention_blocks=1)
    adapter = randomised(LivePhotoAdapter(dataclasses.replace(tiny_config, base=base, motion=motion)))
    host, generator = DiffusersHost(small_unet, adapter), torch.Generator().manual_seed(7)
    words, weights = torch.randn(2, 1, 5, 24, generator=generator), torch.rand(2, 1, 4, 5, generator=generator)
    texts = [lambda n=n: (host.weigh if weighed else apply_weights)(words[n], weights[n]) for n in range(2)]
    samples = torch.randn(2, 4, 4, 8, 8, generator=generator)
    inputs = [(tiny_condition(seed=number), texts[number], samples[number]) for number in range(2)]
    expected = [clip(host, *given) for given in inputs]
    assert (expected[0][0] - expected[1][0]).abs().max() > 1e-2
    counters.clear()
    # what torch.compile's default backend makes of the traced graphs is its own affair
    small_unet.compile(backend="eager")
    graphs = []
    for given, wanted in zip(inputs, expected, strict=True):
        for output, step in zip(clip(host, *given), wanted, strict=True):
            assert torch.allclose(output, step, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert graphs[0] == graphs[1], "the second clip was compiled again"
