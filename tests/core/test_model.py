import dataclasses

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from einops import rearrange, repeat

from livephoto_core.conditioning import check_condition, even_levels, frame_embedding, stem_channels
from livephoto_core.errors import LivePhotoError
from livephoto_core.model import attention
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.model.attention import attend, attend_over_frames
from livephoto_core.model.content import OFFSET_UNIT, ContentAttention, grid_positions, rope_angles, rotate
from livephoto_core.model.motion import MotionModule, PositionTable, sinusoids
from livephoto_core.model.reweight import START_WEIGHT_LOGIT, TextReweighter, apply_weights
from livephoto_core.model.stem import ConditionStem


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_frame_embedding_runs_from_0_to_1():
    assert torch.equal(frame_embedding(5), torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    with pytest.raises(LivePhotoError, match="at least 2 frames, got 1"):
        frame_embedding(1)


def test_stem_channels_are_latent_then_position_then_level():
    latent = torch.randn(2, 4, 3, 5)
    levels = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 5.5]])
    channels = stem_channels(latent, frame_embedding(3), levels)
    assert channels.shape == (6, 6, 3, 5)
    for clip in range(2):
        for frame in range(3):
            row = channels[clip * 3 + frame]
            assert torch.equal(row[:4], latent[clip])
            assert (row[4] == frame / 2).all()
            assert (row[5] == levels[clip, frame]).all()


def test_some_frames_of_a_clip_keep_their_places(tiny_condition):
    whole = tiny_condition(frames=4)
    part = dataclasses.replace(whole, levels=whole.levels[:, :2], places=torch.tensor([1, 3]), length=4)
    assert torch.equal(part.position, whole.position[[1, 3]])


def test_repeated_condition_is_the_same_clips_again(tiny_condition):
    condition = tiny_condition(2)
    twice = condition.repeated(2)
    assert torch.equal(twice.latent, condition.latent[[0, 1, 0, 1]])
    assert torch.equal(twice.tokens, condition.tokens[[0, 1, 0, 1]])
    assert torch.equal(twice.levels, condition.levels[[0, 1, 0, 1]])


def test_one_photo_is_not_repeated(tiny_condition):
    """Its keys and values are the same for guidance's two halves."""
    condition = tiny_condition()
    assert condition.repeated(2).tokens is condition.tokens
    assert len(condition.repeated(2).latent) == 2


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"latent": torch.zeros(1, 16, 8, 8)}, "has 16 channels, the LivePhoto checkpoint's base has 4"),
        ({"tokens": torch.zeros(1, 6, 768)}, "768 wide, the LivePhoto checkpoint needs 12: encode the photo with facebook"),
        ({"tokens": torch.zeros(1, 7, 12)}, "has 7 tokens, its grid is 2x3: leave out the class token"),
        ({"tokens": torch.zeros(2, 6, 12)}, "tokens of 2 photos for 1 reference latents"),
        ({"latent": torch.zeros(4, 4, 8, 8), "tokens": torch.zeros(2, 6, 12), "levels": even_levels(5, 4, 4)}, "2 photos for 4"),
        ({"levels": even_levels(5, 2, 4)}, "levels for 2 clips, and 1 reference latents"),
        ({"levels": even_levels(5, 1, 9)}, "has 9 frames, the LivePhoto checkpoint takes 8 at once"),
    ],
)
def test_condition_that_does_not_fit(tiny_condition, tiny_config, change, cause):
    for fitting in (tiny_condition(), tiny_condition(2), tiny_condition(2).repeated(2), tiny_condition().repeated(2)):
        check_condition(fitting, tiny_config)
    with pytest.raises(LivePhotoError, match=cause):
        check_condition(dataclasses.replace(tiny_condition(), **change), tiny_config)


def test_stem_with_the_bases_convolution_is_one_ten_channel_convolution():
    """Paper section 3.1: the six conditions are concatenated to the noise latent."""
    base, stem = torch.nn.Conv2d(4, 8, 3, padding=1), ConditionStem(4, 8)
    x, conditions = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 6, 6)
    assert stem(conditions).abs().max() == 0
    torch.nn.init.normal_(stem.conv.weight)
    together = F.conv2d(
        torch.cat([x, conditions], 1), torch.cat([base.weight, stem.conv.weight], 1), base.bias, padding=1
    )
    assert torch.allclose(base(x) + stem(conditions), together, atol=1e-5)


@pytest.mark.parametrize("width", [16, 320])
def test_sinusoids_are_the_usual_ones(width):
    theirs = SinusoidalPositionalEmbedding(width, max_seq_length=32)
    assert torch.allclose(sinusoids(32, width), theirs.pe, atol=1e-6)
    assert torch.equal(sinusoids(24, width), sinusoids(32, width)[:, :24])


def test_position_table_adds_the_frames_own_rows():
    table = PositionTable(8, 6)
    x = torch.zeros(4, 3, 6)
    assert torch.equal(table(x, 2), table.pe[0, [0, 1, 0, 1], None].expand(4, 3, 6))
    assert torch.equal(table(x, 2, torch.tensor([3, 7])), table.pe[0, [3, 7, 3, 7], None].expand(4, 3, 6))


def motion_module(speaking=True):
    module = MotionModule(16, heads=4, depth=1, attention_blocks=2, max_frames=8, groups=4)
    if speaking:
        torch.nn.init.normal_(module.temporal_transformer.proj_out.weight)
    return module.eval()


def test_motion_module_is_silent_at_the_start():
    assert motion_module(speaking=False)(torch.randn(4, 16, 3, 3), 4).abs().max() == 0


def test_motion_module_keeps_clips_apart():
    module, x = motion_module(), torch.randn(6, 16, 3, 5)
    together = module(x, 3)
    assert together.shape == x.shape
    assert torch.allclose(together, torch.cat([module(x[:3], 3), module(x[3:], 3)]), atol=1e-5)


def test_motion_module_mixes_frames_and_not_places():
    """Temporal attention alone: what happens at one place is heard in its other frames and nowhere else."""
    module, x = motion_module(), torch.randn(4, 16, 3, 3)
    module.temporal_transformer.norm = torch.nn.Identity()
    changed = x.clone()
    changed[2, :, 1, 1] += 1
    heard = (module(changed, 4) - module(x, 4)).abs().amax(1)
    assert (heard[:, 1, 1] > 1e-4).all()
    heard[:, 1, 1] = 0
    assert heard.max() < 1e-5


def test_motion_module_norms_each_frame_alone():
    norm = motion_module().temporal_transformer.norm
    x = torch.randn(4, 16, 3, 3)
    assert torch.allclose(norm(x)[1:2], norm(x[1:2]), atol=1e-6)


def test_motion_module_knows_the_frames_places():
    module, x = motion_module(), torch.randn(8, 16, 2, 2)
    assert torch.equal(module(x, 8, torch.arange(8)), module(x, 8))
    assert (module(x[:2], 2, torch.tensor([0, 7])) - module(x[:2], 2)).abs().max() > 1e-3


def test_more_places_than_a_cuda_kernel_takes(monkeypatch):
    q, k, v = (torch.randn(6, 5, 8) for _ in range(3))
    whole = attend_over_frames(q, k, v, frames=3, heads=2)
    monkeypatch.setattr(attention, "MOST_HEADS", 4)
    assert torch.allclose(attend_over_frames(q, k, v, frames=3, heads=2), whole, atol=1e-6)


def test_grid_positions_are_cell_centres_row_by_row():
    positions = grid_positions(2, 4)
    assert positions.shape == (8, 2)
    assert torch.allclose(positions[0], torch.tensor([0.25, 0.125]))
    assert torch.allclose(positions[1], torch.tensor([0.25, 0.375]))
    assert torch.allclose(positions[4], torch.tensor([0.75, 0.125]))


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(at, to):
        return (rotate(q, rope_angles(torch.tensor([at]), 8)) * rotate(k, rope_angles(torch.tensor([to]), 8))).sum()

    assert torch.isclose(product([0.1, 0.3], [0.4, 0.2]), product([0.5, 0.6], [0.8, 0.5]), atol=1e-5)
    assert not torch.isclose(product([0.1, 0.3], [0.4, 0.2]), product([0.1, 0.3], [0.2, 0.4]), atol=1e-3)


SIDE = 4


def looking_attention(query, offset=(0.0, 0.0), down=(0.0, 0.0), across=(0.0, 0.0), centre=None):
    """Content attention whose output is its attention map: one token a place, values and output handed through.

    offset, down, across: (y, x) of the look's move, and what is added to it from the middle of the picture to its edge. centre:
    (y, x) of what that counts from, 1 at the edge; None without centres.
    """
    attention = ContentAttention(
        SIDE * SIDE, SIDE * SIDE, heads=1, head_width=SIDE * SIDE, positions="rope", centred=centre is not None
    )
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k):
            layer.weight.zero_()
        for layer in (attention.to_v, attention.to_out):
            layer.weight.copy_(torch.eye(SIDE * SIDE))
            layer.bias.zero_()
        attention.to_q.bias.copy_(query(attention.to_q.bias))
        attention.to_offset.bias.copy_(torch.tensor([*offset, *down, *across]) / OFFSET_UNIT)
        if centre is not None:
            attention.to_centre.bias.copy_(torch.tensor(centre))
    tokens = torch.eye(SIDE * SIDE)[None]
    with torch.no_grad():
        image = attention.keys_values(tokens, (SIDE, SIDE))
        return attention(torch.randn(2, SIDE * SIDE, SIDE * SIDE), (SIDE, SIDE), image)


def test_each_place_first_looks_at_itself():
    maps = looking_attention(lambda bias: bias)
    assert torch.equal(maps.argmax(-1), torch.arange(SIDE * SIDE).expand(2, -1))


@pytest.mark.parametrize("move", [(0, 1), (1, 0), (-2, 0), (1, -1)])
def test_one_query_fetches_from_a_fixed_displacement(move):
    """What a sliding picture needs: the same constant query reads a neighbour, at every place."""
    displacement = torch.tensor([move], dtype=torch.float32) / SIDE

    def towards(bias):
        return 8 * rotate(bias[None, None, None], rope_angles(displacement, SIDE * SIDE))[0, 0, 0]

    assert_looks_away(looking_attention(towards), move)


@pytest.mark.parametrize("move", [(0, 1), (1, 0), (-2, 0), (1, -1)])
def test_a_learnt_offset_moves_the_look(move):
    offset = (move[0] / SIDE, move[1] / SIDE)
    assert_looks_away(looking_attention(lambda bias: 8 * bias, offset), move)


@pytest.mark.parametrize(("y", "x"), [(0.0, -0.5), (-0.5, 0.0), (-0.5, -0.5)])
def test_a_learnt_slope_mirrors_the_look(y, x):
    """A slope of -1 in y and down is the picture upside down: the mirror image is twice as far as the middle."""
    maps = looking_attention(lambda bias: 8 * bias, down=(2 * y, 0.0), across=(0.0, 2 * x))
    for row in range(SIDE):
        for column in range(SIDE):
            there = (SIDE - 1 - row if y else row) * SIDE + (SIDE - 1 - column if x else column)
            assert (maps[:, row * SIDE + column, there] > 0.9).all()


@pytest.mark.parametrize(("centre", "around"), [((0.0, 0.0), 0), ((0.5, -0.5), 1)])
def test_a_centred_look_mirrors_round_a_middle_of_its_own(centre, around):
    """Upside down and left to right round a place that is `around` places below and to the left of the picture's middle."""
    maps = looking_attention(lambda bias: 8 * bias, down=(-1.0, 0.0), across=(0.0, -1.0), centre=centre)
    for row in range(SIDE):
        for column in range(SIDE):
            to_row, to_column = SIDE - 1 - row + 2 * around, SIDE - 1 - column - 2 * around
            if 0 <= to_row < SIDE and 0 <= to_column < SIDE:
                assert (maps[:, row * SIDE + column, to_row * SIDE + to_column] > 0.9).all()


def assert_looks_away(maps, move):
    for y in range(SIDE):
        for x in range(SIDE):
            to_y, to_x = y + move[0], x + move[1]
            if 0 <= to_y < SIDE and 0 <= to_x < SIDE:
                assert (maps[:, y * SIDE + x, to_y * SIDE + to_x] > 0.9).all()


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_content_attention_shares_the_photo_over_a_clips_frames(positions):
    attention = ContentAttention(12, 10, heads=2, head_width=8, positions=positions)
    x, tokens = torch.randn(6, 15, 12), torch.randn(2, 6, 10)
    image = attention.keys_values(tokens, (2, 3))
    assert image.keys.shape == image.values.shape == (2, 2, 6, 8)
    assert attention(x, (3, 5), image).abs().max() == 0
    torch.nn.init.normal_(attention.to_out.weight)
    shared = attention(x, (3, 5), image)
    repeated = attention(x, (3, 5), attention.keys_values(repeat(tokens, "b n d -> (b f) n d", f=3), (2, 3)))
    assert torch.allclose(shared, repeated, atol=1e-5)


def test_without_positions_the_order_of_the_tokens_is_unknown():
    attention = ContentAttention(12, 10, heads=2, head_width=8, positions="none")
    torch.nn.init.normal_(attention.to_out.weight)
    x, tokens = torch.randn(1, 4, 12), torch.randn(1, 6, 10)
    there, back = (attention(x, (2, 2), attention.keys_values(t, (2, 3))) for t in (tokens, tokens.flip(1)))
    assert torch.allclose(there, back, atol=1e-5)


def test_weights_start_equal_and_high():
    """From a random start they fall to zero and stay there."""
    reweighter = TextReweighter(24, frames=4, layers=1, heads=4)
    weights = reweighter(torch.randn(2, 77, 24), 4)
    assert weights.shape == (2, 4, 77)
    assert torch.allclose(weights, torch.sigmoid(torch.tensor(START_WEIGHT_LOGIT)))
    weights.sum().backward()
    assert reweighter.to_frames.weight.grad.abs().max() > 0


def test_weights_lie_between_0_and_1_and_differ_by_token_and_frame():
    reweighter = TextReweighter(24, frames=4, layers=2, heads=4)
    torch.nn.init.normal_(reweighter.to_frames.weight, std=2)
    weights = reweighter(torch.randn(1, 7, 24), 4)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights.std(1).min() > 0
    assert weights.std(2).min() > 0


def test_other_frame_counts_are_read_between_the_learnt_ones():
    reweighter = TextReweighter(24, frames=4, layers=1, heads=4)
    torch.nn.init.normal_(reweighter.to_frames.weight)
    text = torch.randn(2, 7, 24)
    learnt, longer = reweighter(text, 4), reweighter(text, 7)
    assert longer.shape == (2, 7, 7)
    assert torch.allclose(longer[:, ::2], learnt, atol=1e-5)


def test_strength_of_the_weights():
    text, weights = torch.randn(2, 7, 24), torch.rand(2, 3, 7)
    assert torch.equal(apply_weights(text, weights, 0.0), repeat(text, "b l d -> (b f) l d", f=3))
    full = rearrange(apply_weights(text, weights), "(b f) l d -> b f l d", f=3)
    assert torch.allclose(full, text[:, None] * weights[..., None])
    half = rearrange(apply_weights(text, weights, 0.5), "(b f) l d -> b f l d", f=3)
    assert torch.allclose(half, text[:, None] * (1 + weights[..., None]) / 2)


def test_parts_count_every_parameter(tiny_adapter):
    counts = tiny_adapter.parameter_counts()
    assert list(counts) == ["condition stem", "motion modules", "content attention", "text re-weighter"]
    assert sum(counts.values()) == sum(parameter.numel() for parameter in tiny_adapter.parameters())


def test_photo_is_projected_once_for_all_sites(tiny_adapter, tiny_condition):
    condition = tiny_condition(3)
    photo = tiny_adapter.photo_keys_values(condition.tokens, condition.grid)
    assert set(photo) == set(tiny_adapter.content.names)
    assert all(part.keys.shape == (3, 2, 6, 8) for part in photo.values())


def test_same_weights_without_the_middle_block(tiny_config):
    without = dataclasses.replace(tiny_config, motion=dataclasses.replace(tiny_config.motion, mid_block=False))
    names = set(LivePhotoAdapter(tiny_config).state_dict()) - set(LivePhotoAdapter(without).state_dict())
    assert names
    assert all(name.startswith("motion.mid_block.motion_modules.0.") for name in names)


def test_a_strength_above_one_never_turns_a_word_round():
    text, weights = torch.ones(1, 2, 3), torch.tensor([[[0.2, 0.9]]])
    torch.testing.assert_close(apply_weights(text, weights, 2.0)[0, :, 0], torch.tensor([0.0, 0.8]))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_of_halves_on_a_cpu_loses_nothing_to_them(dtype, autocast):
    """Rounded once, at its end."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=generator).to(dtype) for _ in range(3))
    frames = [torch.randn(8, 5, 24, generator=generator).to(dtype) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, over_frames = attend(q, k, v), attend_over_frames(*frames, 4, 3)
    assert found.dtype == over_frames.dtype == dtype
    assert torch.equal(found, attend(q.float(), k.float(), v.float()).to(dtype))
    assert torch.equal(over_frames, attend_over_frames(*(part.float() for part in frames), 4, 3).to(dtype))
