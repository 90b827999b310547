import json
from dataclasses import replace

import pytest

from livephoto_core.config import (
    AdapterConfig,
    BaseShape,
    ContentShape,
    MotionShape,
    NoiseSchedule,
    ReweightShape,
    content_sites,
    from_dict,
    from_json,
    motion_sites,
    to_json,
)
from livephoto_core.errors import LivePhotoError

THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def test_json_round_trip(tiny_config):
    for config in (AdapterConfig(), tiny_config, replace(tiny_config, ssim_thresholds=THRESHOLDS)):
        assert from_json(to_json(config)) == config


def test_equal_configs_are_equal_text(tiny_config):
    assert to_json(tiny_config) == to_json(from_json(to_json(tiny_config)))


def test_what_is_left_out_keeps_its_default():
    assert from_dict({}) == AdapterConfig()
    assert from_dict({"motion": {"max_frames": 24}}) == AdapterConfig(motion=MotionShape(max_frames=24))


def test_a_checkpoint_that_does_not_say_on_what_its_levels_were_measured(tiny_config):
    values = json.loads(to_json(replace(tiny_config, ssim_thresholds=THRESHOLDS, intensity_from="reconstruction")))
    assert from_json(json.dumps(values)).intensity_from == "reconstruction"
    del values["intensity_from"]
    assert from_json(json.dumps(values)).intensity_from == "frames"


def test_a_checkpoint_of_before_there_were_centres(tiny_config):
    values = json.loads(to_json(tiny_config))
    assert from_json(json.dumps(values)).content.centred
    del values["content"]["centred"]
    assert not from_json(json.dumps(values)).content.centred
    assert not from_json("{}").content.centred


def test_whole_number_stands_for_a_fraction():
    config = from_dict({"ssim_thresholds": [1, *THRESHOLDS[1:]]})
    assert config.ssim_thresholds == (1.0, *THRESHOLDS[1:])


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"frame": 16}, "unknown names frame; known: base"),
        ({"base": {"chanels": 3}}, "config.base has unknown names chanels"),
        ({"base": 5}, "config.base must be a table"),
        ({"frames": "16"}, "config.frames is '16'; it must be of type int"),
        ({"frames": 16.5}, "config.frames is 16.5; it must be of type int"),
        ({"frames": True}, "config.frames is True; it must be of type int"),
        ({"motion": {"mid_block": 1}}, "mid_block is 1; it must be of type bool"),
        ({"content": {"encoder": 5}}, "encoder is 5; it must be of type str"),
        ({"base": {"block_channels": 320}}, "block_channels is 320; it must be of type list"),
        ({"base": {"block_channels": [320, "640"]}}, r"block_channels\[1\] is '640'; it must be of type int"),
        ({"ssim_thresholds": ["high"]}, r"ssim_thresholds\[0\] is 'high'"),
    ],
)
def test_value_of_the_wrong_kind(values, cause):
    with pytest.raises(LivePhotoError, match=cause):
        from_dict(values)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"frames": 1}, "frames is 1; use 2 to 32"),
        ({"frames": 33}, "frames is 33; use 2 to 32"),
        ({"frame_stride": 0}, "frame_stride is 0; it must be 1 or more"),
        ({"motion": MotionShape(heads=0)}, "motion.heads is 0; it must be 1 or more"),
        ({"motion": MotionShape(heads=7)}, "motion.heads is 7, which does not divide the width 320"),
        ({"reweight": ReweightShape(heads=7)}, "reweight.heads is 7, which does not divide the width 768"),
        ({"base": BaseShape(norm_groups=48)}, "base.norm_groups is 48, which does not divide the width 320"),
        ({"base": BaseShape(block_channels=(320, -640, 1280, 1280))}, "base.block_channels is -640"),
        ({"base": BaseShape(block_channels=(320, 640))}, "has 2 levels, base.block_attention 4"),
        ({"content": ContentShape(positions="learnt")}, "content.positions is 'learnt'; use 'rope' or 'none'"),
        ({"content": ContentShape(head_width=10)}, "head_width is 10; rope needs a multiple of 4"),
        ({"schedule": NoiseSchedule(kind="cosine")}, "schedule.kind is 'cosine'"),
        ({"schedule": NoiseSchedule(beta_start=float("nan"))}, "beta_start is nan"),
        ({"schedule": NoiseSchedule(beta_start=0.02)}, "beta_start is 0.02, beta_end 0.012; they must rise"),
        ({"schedule": NoiseSchedule(timesteps=0)}, "schedule.timesteps is 0"),
        ({"intensity_from": "latents"}, "intensity_from is 'latents'; use 'frames' or 'reconstruction'"),
        ({"shared_noise": 1.5}, "shared_noise is 1.5; use 0"),
        ({"shared_noise": float("nan")}, "shared_noise is nan; use 0"),
        ({"shared_noise_still": -0.1}, "shared_noise_still is -0.1; use 0"),
        ({"shared_noise": 0.6, "shared_noise_still": 0.3}, "shared_noise_still is 0.3, less than shared_noise 0.6"),
        ({"ssim_thresholds": THRESHOLDS[:8]}, "nine falling SSIM values"),
        ({"ssim_thresholds": THRESHOLDS[::-1]}, "nine falling SSIM values"),
        ({"ssim_thresholds": (float("nan"), *THRESHOLDS[1:])}, "nine falling SSIM values"),
    ],
)
def test_config_that_cannot_be_built(values, cause):
    with pytest.raises(LivePhotoError, match=cause):
        AdapterConfig(**values)


def test_other_families_and_versions_are_told_before_their_names():
    with pytest.raises(LivePhotoError, match="of the family 'wan'; only 'sd15'"):
        from_json(json.dumps({"family": "wan", "levels": 6}))
    with pytest.raises(LivePhotoError, match="format version is 2, this code reads 1: update"):
        from_json(json.dumps({"format_version": 2, "novelty": 6}))


@pytest.mark.parametrize("text", ["{", "", "[1]", '"sd15"'])
def test_not_a_config(text):
    with pytest.raises(LivePhotoError):
        from_json(text)


def test_sites_of_sd15():
    """AnimateDiff's 20 or 21 motion modules, SD1.5's 16 spatial transformers."""
    motion = motion_sites(BaseShape(), mid_block=True)
    assert len(motion) == 21
    assert len(motion_sites(BaseShape(), mid_block=False)) == 20
    assert motion["down_blocks.3.motion_modules.1"] == 1280
    assert motion["up_blocks.3.motion_modules.2"] == 320
    content = content_sites(BaseShape())
    assert len(content) == 16
    assert "down_blocks.3.attentions.0" not in content
    assert "up_blocks.0.attentions.0" not in content
    assert content["mid_block.attentions.0"] == 1280
    assert content["up_blocks.1.attentions.2"] == 1280


def test_sites_exist_in_the_unet(tiny_unet, tiny_config):
    named = dict(tiny_unet.named_modules())
    for name, channels in content_sites(tiny_config.base).items():
        assert named[name].norm.num_channels == channels
    assert sum(name.endswith(".attn2") for name in named) == len(content_sites(tiny_config.base))
