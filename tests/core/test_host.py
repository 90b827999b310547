import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from livephoto_core.conditioning import ClipCondition
from livephoto_core.config import AdapterConfig
from livephoto_core.diffusers_host import DiffusersHost, base_shape, check_fit, grid_of
from livephoto_core.errors import LivePhotoError
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.reweight import apply_weights


def inputs(clips=1, frames=4, seed=7):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(clips * frames, 4, 8, 8, generator=generator)
    text = torch.randn(clips * frames, 5, 24, generator=generator)
    return sample, 300, text


def call(unet, arguments):
    with torch.no_grad():
        return unet(*arguments).sample


def with_adapter(unet, adapter, condition, arguments, **strengths):
    host = DiffusersHost(unet, adapter, **strengths)
    with host, host.conditioned(condition):
        return call(unet, arguments)


def test_every_part_has_an_effect(tiny_unet, tiny_adapter, tiny_condition):
    base = call(tiny_unet, inputs())
    whole = with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs())
    assert (whole - base).abs().max() > 0.05
    for part in ("stem", "motion", "content"):
        silenced = copy.deepcopy(tiny_adapter)
        with torch.no_grad():
            for parameter in getattr(silenced, part).parameters():
                parameter.zero_()
        assert (with_adapter(tiny_unet, silenced, tiny_condition(), inputs()) - whole).abs().max() > 1e-3, part


def test_fresh_adapter_leaves_the_base_as_it_is(tiny_unet, tiny_config, tiny_condition):
    base = call(tiny_unet, inputs())
    fresh = with_adapter(tiny_unet, LivePhotoAdapter(tiny_config), tiny_condition(), inputs())
    assert (fresh - base).abs().max() <= 1e-6


def test_strength_zero_leaves_the_base_as_it_is(tiny_unet, tiny_adapter, tiny_condition):
    base = call(tiny_unet, inputs())
    silent = with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs(), image_strength=0.0, motion_strength=0.0)
    assert (silent - base).abs().max() <= 1e-6
    for strengths in ({"image_strength": 0.0}, {"motion_strength": 0.0}):
        assert (with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs(), **strengths) - base).abs().max() > 1e-3


def test_detached_unet_is_bit_identical(tiny_unet, tiny_adapter, tiny_condition):
    before, state = call(tiny_unet, inputs()), copy.deepcopy(tiny_unet.state_dict())
    assert not torch.equal(with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs()), before)
    assert torch.equal(call(tiny_unet, inputs()), before)
    after = tiny_unet.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_state_dict_is_the_bases_own_while_attached(tiny_unet, tiny_adapter):
    names = list(tiny_unet.state_dict())
    with DiffusersHost(tiny_unet, tiny_adapter):
        assert list(tiny_unet.state_dict()) == names


def test_error_inside_detaches(tiny_unet, tiny_adapter, tiny_condition):
    before = call(tiny_unet, inputs())
    host = DiffusersHost(tiny_unet, tiny_adapter)
    with pytest.raises(KeyboardInterrupt), host, host.conditioned(tiny_condition()):
        raise KeyboardInterrupt
    assert torch.equal(call(tiny_unet, inputs()), before)


def test_attaching_twice_is_attaching_once(tiny_unet, tiny_adapter, tiny_condition):
    before = call(tiny_unet, inputs())
    host = DiffusersHost(tiny_unet, tiny_adapter)
    host.attach()
    with host.conditioned(tiny_condition()):
        once = call(tiny_unet, inputs())
        host.attach()
        assert torch.equal(call(tiny_unet, inputs()), once)
    host.detach()
    host.detach()
    assert torch.equal(call(tiny_unet, inputs()), before)


def test_second_host_is_refused_until_the_first_is_off(tiny_unet, tiny_adapter):
    first, second = DiffusersHost(tiny_unet, tiny_adapter), DiffusersHost(tiny_unet, tiny_adapter)
    with first, pytest.raises(LivePhotoError, match="already has a LivePhoto adapter attached: detach that one first"):
        second.attach()
    with second:
        pass
    assert not tiny_unet.conv_in._forward_hooks


def test_two_clips_at_once_are_two_single_runs(tiny_unet, tiny_adapter, tiny_condition):
    both, (sample, timestep, text) = tiny_condition(2), inputs(2)
    together = with_adapter(tiny_unet, tiny_adapter, both, (sample, timestep, text))
    for clip in range(2):
        rows = slice(clip * 4, clip * 4 + 4)
        one = ClipCondition(both.latent[clip, None], both.tokens[clip, None], both.grid, both.levels[clip, None])
        alone = with_adapter(tiny_unet, tiny_adapter, one, (sample[rows], timestep, text[rows]))
        assert (together[rows] - alone).abs().max() < 1e-5


def test_guidance_batch_is_the_clip_twice(tiny_unet, tiny_adapter, tiny_condition):
    sample, timestep, text = inputs()
    once = with_adapter(tiny_unet, tiny_adapter, tiny_condition(), (sample, timestep, text))
    doubled = (sample.repeat(2, 1, 1, 1), timestep, text.repeat(2, 1, 1))
    twice = with_adapter(tiny_unet, tiny_adapter, tiny_condition().repeated(2), doubled)
    assert (twice - once.repeat(2, 1, 1, 1)).abs().max() < 1e-5


def test_photo_is_projected_once_for_all_frames_and_steps(tiny_unet, tiny_adapter, tiny_condition):
    """Image tokens are never repeated for each frame: their keys and values depend on the photo alone."""
    sizes = []
    site = tiny_adapter.content[tiny_adapter.content.names[0]]
    watch = site.to_k.register_forward_hook(lambda module, arguments, output: sizes.append(tuple(output.shape)))
    host = DiffusersHost(tiny_unet, tiny_adapter)
    with host, host.conditioned(tiny_condition(2)):
        for _ in range(3):
            call(tiny_unet, inputs(2))
    watch.remove()
    assert sizes == [(2, 6, 16)]


def watched_text(unet):
    """A list that gets the shape of each text projected to keys."""
    shapes, site = [], unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    site.to_k.register_forward_hook(lambda module, arguments, output: shapes.append(tuple(arguments[0].shape)))
    return shapes


def test_text_is_projected_once_for_all_steps(tiny_unet, tiny_adapter, tiny_condition):
    shapes, (sample, _, text) = watched_text(tiny_unet), inputs()
    host, other = DiffusersHost(tiny_unet, tiny_adapter), text.flip(0)
    with host, host.conditioned(tiny_condition()):
        kept = [call(tiny_unet, (sample, step, text)) for step in (300, 200, 100)]
        assert len(shapes) == 1
        turned = call(tiny_unet, (sample, 100, other))
        assert len(shapes) == 2
    for step, output in zip((300, 200, 100), kept, strict=True):
        assert torch.equal(with_adapter(tiny_unet, tiny_adapter, tiny_condition(), (sample, step, text)), output)
    assert torch.equal(with_adapter(tiny_unet, tiny_adapter, tiny_condition(), (sample, 100, other)), turned)


def test_kept_text_goes_with_the_condition(tiny_unet, tiny_adapter, tiny_condition):
    """Weights may change between two samplings of the same text."""
    shapes, arguments = watched_text(tiny_unet), inputs()
    host = DiffusersHost(tiny_unet, tiny_adapter)
    with host:
        with host.conditioned(tiny_condition()):
            before = call(tiny_unet, arguments)
        with torch.no_grad():
            tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.mul_(1.5)
        with host.conditioned(tiny_condition()):
            after = call(tiny_unet, arguments)
    assert len(shapes) == 2
    assert not torch.equal(before, after)


def test_text_is_never_kept_with_gradients(tiny_unet, tiny_adapter, tiny_condition):
    """The text re-weighter learns through it."""
    shapes, (sample, step, text) = watched_text(tiny_unet), inputs()
    text.requires_grad_()
    host = DiffusersHost(tiny_unet, tiny_adapter.requires_grad_(False))
    with host, host.conditioned(tiny_condition()):
        for _ in range(2):
            tiny_unet(sample, step, text).sample.sum().backward()
    assert len(shapes) == 2
    assert text.grad.abs().max() > 0


def weighed(clips, frames=4):
    """Words [B, L, D] and their weights [B, F, L]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(clips, 5, 24, generator=generator), torch.rand(clips, frames, 5, generator=generator)


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_words_are_projected_once_for_all_frames(tiny_unet, tiny_adapter, tiny_condition, strength):
    shapes, (sample, step, _) = watched_text(tiny_unet), inputs(2)
    host = DiffusersHost(tiny_unet, tiny_adapter)
    words, weights = weighed(2)
    with host, torch.no_grad():
        text = host.weigh(words, weights, strength)
        assert torch.equal(text, apply_weights(words, weights, strength))
        with host.conditioned(tiny_condition(2)):
            found = [call(tiny_unet, (sample, at, text)) for at in (step, step)]
            assert shapes == [words.shape]
            # the same values, of which no words are known
            plain = call(tiny_unet, (sample, step, text.clone()))
        assert shapes == [words.shape, text.shape]
        for output in found:
            assert (output - plain).abs().max() < 1e-5
        with host.conditioned(tiny_condition(2)):
            call(tiny_unet, (sample, step, text))
        assert shapes[2:] == [text.shape], "went on with the words of a sampling that is over"


def test_a_weighed_text_stays_what_it_is_when_another_is_weighed(tiny_unet, tiny_adapter, tiny_condition):
    (sample, step, _), host = inputs(), DiffusersHost(tiny_unet, tiny_adapter)
    (words, weights), (others, _) = weighed(1), (x.flip(1) for x in weighed(1))
    with host, torch.no_grad(), host.conditioned(tiny_condition()):
        first = host.weigh(words, weights)
        before = call(tiny_unet, (sample, step, first))
        second = host.weigh(others, weights)
        assert torch.equal(call(tiny_unet, (sample, step, first)), before)
        assert not torch.allclose(call(tiny_unet, (sample, step, second)), before, atol=1e-3)
        assert torch.allclose(call(tiny_unet, (sample, step, first)), before, atol=1e-5)


class Offset(torch.nn.Linear):
    """A layer that others put on: not in proportion to what goes in."""

    def forward(self, x):
        return super().forward(x) + 1


def test_layers_of_others_get_the_text_of_each_frame(tiny_unet, tiny_adapter, tiny_condition):
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    theirs = Offset(attention.to_k.in_features, attention.to_k.out_features, bias=False)
    theirs.load_state_dict(attention.to_k.state_dict())
    attention.to_k = theirs
    (sample, step, _), host = inputs(), DiffusersHost(tiny_unet, tiny_adapter)
    words, weights = weighed(1)
    with host, torch.no_grad(), host.conditioned(tiny_condition()):
        text = host.weigh(words, weights)
        assert torch.allclose(call(tiny_unet, (sample, step, text)), call(tiny_unet, (sample, step, text.clone())), atol=1e-5)


def test_words_and_weights_learn_as_through_the_text_of_each_frame(tiny_unet, tiny_adapter, tiny_condition):
    sample, step, _ = inputs(2)
    host = DiffusersHost(tiny_unet, tiny_adapter)
    learnt = []
    for of_words in (True, False):
        words, weights = (x.requires_grad_() for x in weighed(2))
        text = host.weigh(words, weights) if of_words else apply_weights(words, weights)
        key = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.requires_grad_()
        key.grad = None
        with host, host.conditioned(tiny_condition(2)):
            tiny_unet(sample, step, text).sample.square().sum().backward()
        learnt.append((words.grad, weights.grad, key.grad))
    for ours, plain in zip(*learnt, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_fresh_processor_of_the_same_class_is_the_default_one(tiny_unet, tiny_adapter, kind):
    """As diffusers makes them where an IP-Adapter is loaded or unloaded; they stay when the adapter goes."""
    with DiffusersHost(tiny_unet, tiny_adapter):
        found = {name: type(p)() for name, p in tiny_unet.attn_processors.items() if f".{kind}." in name}
        assert found and all(type(p) is AttnProcessor2_0 for p in found.values())
        tiny_unet.set_attn_processor({**tiny_unet.attn_processors, **found})
    assert {name: tiny_unet.attn_processors[name] for name in found} == found
    assert all(type(p) is AttnProcessor2_0 for p in tiny_unet.attn_processors.values())


def test_self_attention_is_the_bases_own(tiny_unet, tiny_adapter, tiny_condition):
    """Bit for bit in float32; under a mask the default processor answers."""
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(4, 16, 16)
    mask = torch.zeros(4, 1, 16).index_fill(2, torch.tensor([0, 3]), -1e4)
    with torch.no_grad():
        wanted = attention(hidden), attention(hidden, attention_mask=mask)
        with DiffusersHost(tiny_unet, tiny_adapter):
            assert type(attention.processor) is not AttnProcessor2_0
            found = attention(hidden), attention(hidden, attention_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert type(attention.processor) is AttnProcessor2_0


class Doubled(AttnProcessor2_0):
    """Another library's processor."""

    def __call__(self, *arguments, **named):
        return 2 * super().__call__(*arguments, **named)


def test_processors_of_others_stay(tiny_unet, tiny_adapter, tiny_condition):
    before = dict(tiny_unet.attn_processors)
    plain = with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs())
    assert tiny_unet.attn_processors == before
    tiny_unet.set_attn_processor(Doubled())
    processors = dict(tiny_unet.attn_processors)
    assert (with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs()) - plain).abs().max() > 1e-3
    assert tiny_unet.attn_processors == processors
    host = DiffusersHost(tiny_unet, tiny_adapter)
    tiny_unet.set_attn_processor(AttnProcessor2_0())
    with host:
        tiny_unet.set_attn_processor(dict(processors))
    assert tiny_unet.attn_processors == processors


def test_a_processor_put_back_by_others_is_the_default_one(tiny_unet, tiny_adapter, tiny_condition):
    """As code that saves and restores `attn_processors` around its own work does."""
    arguments, host = inputs(), DiffusersHost(tiny_unet, tiny_adapter)
    attention = tiny_unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    before = call(tiny_unet, arguments)
    with host, host.conditioned(tiny_condition()):
        during = call(tiny_unet, arguments)
        saved = dict(tiny_unet.attn_processors)
    tiny_unet.set_attn_processor(saved)
    shapes = watched_text(tiny_unet)
    for _ in range(2):
        assert torch.equal(call(tiny_unet, arguments), before)
    assert len(shapes) == 2
    with torch.no_grad():
        attention.to_k.weight.mul_(1.5)
    assert not torch.equal(call(tiny_unet, arguments), before)
    with torch.no_grad():
        attention.to_k.weight.div_(1.5)
    shapes.clear()
    with host, host.conditioned(tiny_condition()):
        for _ in range(2):
            assert torch.allclose(call(tiny_unet, arguments), during, atol=1e-5)
    assert len(shapes) == 1
    assert type(attention.processor) is AttnProcessor2_0


@pytest.mark.parametrize("used", [False, True])
def test_a_host_is_freed_with_its_last_user(tiny_config, make_unet, tiny_condition, used):
    """By reference counting alone: a UNet may fill a GPU."""
    unet, adapter = make_unet(), LivePhotoAdapter(tiny_config)
    host = DiffusersHost(unet, adapter)
    if used:
        with host, host.conditioned(tiny_condition()):
            call(unet, inputs())
    parts = [weakref.ref(part) for part in (host, unet, adapter)]
    gc.disable()
    try:
        del host, unet, adapter
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def test_strengths_may_change_between_calls(tiny_unet, tiny_adapter, tiny_condition):
    base, host = call(tiny_unet, inputs()), DiffusersHost(tiny_unet, tiny_adapter)
    with host, host.conditioned(tiny_condition()):
        assert (call(tiny_unet, inputs()) - base).abs().max() > 1e-3
        host.image_strength = host.motion_strength = 0.0
        assert (call(tiny_unet, inputs()) - base).abs().max() <= 1e-6
    assert host.image_strength == host.motion_strength == 0


def test_frames_of_a_longer_clip(tiny_unet, tiny_adapter, tiny_condition):
    """All places given by number are the whole clip; other places give something else."""
    whole = tiny_condition()
    numbered = dataclasses.replace(whole, places=torch.arange(4), length=4)
    expected = with_adapter(tiny_unet, tiny_adapter, whole, inputs())
    assert torch.equal(with_adapter(tiny_unet, tiny_adapter, numbered, inputs()), expected)
    later = dataclasses.replace(whole, places=torch.arange(4) + 4, length=8)
    assert (with_adapter(tiny_unet, tiny_adapter, later, inputs()) - expected).abs().max() > 1e-3


def adapter_gradients(unet, adapter, condition):
    unet.requires_grad_(False)
    adapter.zero_grad()
    host = DiffusersHost(unet, adapter)
    host.attach()
    host.condition(condition)
    unet(*inputs()).sample.square().mean().backward()
    host.detach()
    return {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}


def test_what_content_attention_looks_at_is_computed_again_for_the_backward_pass(
    tiny_unet, tiny_adapter, tiny_condition, monkeypatch
):
    """Not kept for all sites at once; the gradients are those of keys and values that were kept."""
    calls = []
    site = tiny_adapter.content[tiny_adapter.content.names[0]]
    site.to_k.register_forward_hook(lambda *_: calls.append(1))
    again = adapter_gradients(tiny_unet, tiny_adapter, tiny_condition())
    assert len(calls) == 2
    monkeypatch.setattr("livephoto_core.diffusers_host.checkpoint", lambda look, *arguments, use_reentrant: look(*arguments))
    kept = adapter_gradients(tiny_unet, tiny_adapter, tiny_condition())
    assert len(calls) == 3 and set(again) == set(kept)
    for name, gradient in kept.items():
        assert torch.allclose(gradient, again[name], rtol=1e-4, atol=1e-6), name


def test_gradient_checkpointing_gives_the_same_gradients(tiny_unet, tiny_adapter, tiny_condition):
    """And every motion module keeps nothing for the backward pass: it runs again there, once."""
    tiny_unet.train()
    runs = dict.fromkeys(tiny_adapter.motion.names, 0)
    looks = []
    tiny_adapter.content[tiny_adapter.content.names[0]].to_k.register_forward_hook(lambda *_: looks.append(1))
    for name in runs:

        def count(module, arguments, name=name):
            runs[name] += 1

        tiny_adapter.motion[name].register_forward_pre_hook(count)
    plain = adapter_gradients(tiny_unet, tiny_adapter, tiny_condition())
    assert set(runs.values()) == {1} and len(looks) == 2
    tiny_unet.enable_gradient_checkpointing()
    checkpointed = adapter_gradients(tiny_unet, tiny_adapter, tiny_condition())
    # and content attention no oftener than without
    assert set(runs.values()) == {3} and len(looks) == 4
    expected = {name for name, _ in tiny_adapter.named_parameters() if not name.startswith("reweight.")}
    assert set(plain) == set(checkpointed) == expected
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-4, atol=1e-6), name


def test_fresh_adapter_can_learn(tiny_unet, tiny_config, tiny_condition):
    """Zero-initialised is not dead: each part's last layer has a gradient."""
    gradients = adapter_gradients(tiny_unet, LivePhotoAdapter(tiny_config), tiny_condition())
    last = [name for name in gradients if name.endswith(("proj_out.weight", "to_out.weight", "stem.conv.weight"))]
    assert len(last) > len(tiny_config.base.block_channels)
    assert all(gradients[name].abs().max() > 0 for name in last if "attention_blocks" not in name)


@pytest.mark.parametrize(
    ("height", "width", "places", "grid"),
    [(8, 8, 64, (8, 8)), (8, 8, 4, (2, 2)), (8, 12, 24, (4, 6)), (9, 9, 25, (5, 5)), (6, 10, 1, (1, 1))],
)
def test_grid_of_a_level(height, width, places, grid):
    assert grid_of(places, height, width) == grid


def test_places_of_no_level():
    with pytest.raises(LivePhotoError, match="no level of a 10x6 latent has 7 places: use a size divisible by 8"):
        grid_of(7, 6, 10)


def test_latent_that_is_not_square(tiny_unet, tiny_adapter, tiny_condition):
    condition = dataclasses.replace(tiny_condition(), latent=torch.randn(1, 4, 8, 12))
    sample, timestep, text = inputs()
    wide = torch.cat([sample, sample[..., :4]], -1)
    assert with_adapter(tiny_unet, tiny_adapter, condition, (wide, timestep, text)).shape == (4, 4, 8, 12)


def test_reference_latent_of_another_size(tiny_unet, tiny_adapter, tiny_condition):
    condition = dataclasses.replace(tiny_condition(), latent=torch.zeros(1, 4, 16, 16))
    with pytest.raises(LivePhotoError, match=r"is \(16, 16\), the clip's \(8, 8\): encode the photo at the clip's size"):
        with_adapter(tiny_unet, tiny_adapter, condition, inputs())


def test_unet_called_without_a_photo(tiny_unet, tiny_adapter, tiny_condition):
    host = DiffusersHost(tiny_unet, tiny_adapter)
    with host:
        with pytest.raises(LivePhotoError, match="no photo: set one with"):
            call(tiny_unet, inputs())
        with host.conditioned(tiny_condition()):
            call(tiny_unet, inputs())
        with pytest.raises(LivePhotoError, match="no photo: set one with"):
            call(tiny_unet, inputs())


def test_unet_called_with_other_frames(tiny_unet, tiny_adapter, tiny_condition):
    with pytest.raises(LivePhotoError, match="called with 8 frames, the condition is for 1 clips of 4"):
        with_adapter(tiny_unet, tiny_adapter, tiny_condition(), inputs(2))


def test_tokens_of_another_encoder(tiny_unet, tiny_adapter, tiny_condition):
    condition = dataclasses.replace(tiny_condition(), tokens=torch.zeros(1, 6, 768))
    with pytest.raises(LivePhotoError, match="768 wide, the LivePhoto checkpoint needs 12"):
        with_adapter(tiny_unet, tiny_adapter, condition, inputs())


def test_shape_is_read_off_the_unet(tiny_unet, tiny_config):
    assert base_shape(tiny_unet) == tiny_config.base
    with torch.device("meta"):
        assert base_shape(UNet2DConditionModel(cross_attention_dim=768)) == AdapterConfig().base


def test_sdxl_is_told_from_sd15():
    sdxl = dataclasses.replace(AdapterConfig().base, block_channels=(320, 640, 1280), context_width=2048)
    with pytest.raises(LivePhotoError) as raised:
        check_fit(AdapterConfig(), sdxl)
    expected = "LivePhoto needs an SD1.5 model (cross-attention width 768); this one has 2048: load an SD1.5 checkpoint"
    assert str(raised.value) == expected


def test_other_base_is_refused_before_any_hook(tiny_unet, tiny_config):
    base = dataclasses.replace(tiny_config.base, block_channels=(16, 48))
    with pytest.raises(LivePhotoError, match=r"with block_channels \(16, 48\); this one has \(16, 32\): load the base"):
        DiffusersHost(tiny_unet, LivePhotoAdapter(dataclasses.replace(tiny_config, base=base)))
