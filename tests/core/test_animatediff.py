import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from einops import rearrange
from safetensors.torch import save_file

from livephoto_core.animatediff import load_motion, motion_shape_of
from livephoto_core.checkpoint import save_adapter
from livephoto_core.config import AdapterConfig, BaseShape, MotionShape
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.errors import LivePhotoError
from livephoto_core.model.adapter import LivePhotoAdapter

VERSIONS = {
    "v1": MotionShape(heads=4, max_frames=24, mid_block=False),
    "v2": MotionShape(heads=4, max_frames=32, mid_block=True),
    "v3": MotionShape(heads=4, max_frames=32, mid_block=False),
}
TENSORS_IN_A_MODULE = 28


def adapter_with(config: AdapterConfig, motion: MotionShape) -> LivePhotoAdapter:
    return LivePhotoAdapter(dataclasses.replace(config, motion=motion))


@pytest.fixture
def motion_file(tiny_config, randomised, tmp_path):
    """Writes a motion module of a public version, at the tiny UNet's widths, in the ways such files come in."""

    def write(version="v2", style="safetensors", change=lambda tensors: tensors):
        source = randomised(adapter_with(tiny_config, VERSIONS[version]), seed=5)
        tensors = change(dict(source.motion.state_dict()))
        if style == "safetensors":
            path = tmp_path / f"mm_{version}.safetensors"
            save_file(tensors, path)
            return path
        path = tmp_path / f"mm_{version}_{style}.ckpt"
        prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
        values = {
            "plain": tensors,
            "nested": {"epoch": 3, "global_step": 100, "state_dict": prefixed},
            "old": prefixed,
        }[style]
        torch.save(values, path, _use_new_zipfile_serialization=style != "old")
        return path

    return write


def test_names_are_animatediffs():
    """The names and shapes of mm_sd_v15_v2.ckpt, as far as they follow from its published architecture."""
    with torch.device("meta"):
        motion = LivePhotoAdapter(AdapterConfig(motion=VERSIONS["v2"])).motion
    shapes = {name: tuple(tensor.shape) for name, tensor in motion.state_dict().items()}
    assert len(shapes) == 21 * TENSORS_IN_A_MODULE
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    assert shapes[f"{block}.attention_blocks.0.pos_encoder.pe"] == (1, 32, 320)
    assert shapes[f"{block}.attention_blocks.1.to_q.weight"] == (320, 320)
    assert shapes[f"{block}.attention_blocks.1.to_out.0.bias"] == (320,)
    assert shapes[f"{block}.norms.1.weight"] == (320,)
    assert shapes[f"{block}.ff.net.0.proj.weight"] == (2560, 320)
    assert shapes[f"{block}.ff.net.2.weight"] == (320, 1280)
    assert shapes[f"{block}.ff_norm.bias"] == (320,)
    assert shapes["mid_block.motion_modules.0.temporal_transformer.norm.weight"] == (1280,)
    assert shapes["up_blocks.3.motion_modules.2.temporal_transformer.proj_out.weight"] == (320, 320)
    assert sum(tensor.numel() for tensor in motion.parameters()) == 453_209_280


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("style", ["safetensors", "plain", "nested", "old"])
def test_every_version_and_file_kind_loads_key_for_key(tiny_config, motion_file, version, style):
    path = motion_file(version, style)
    shape = dataclasses.replace(motion_shape_of(path), heads=4)
    assert shape == VERSIONS[version]
    target = adapter_with(tiny_config, shape)
    report = load_motion(path, target)
    assert set(report.taken) == set(target.motion.state_dict())
    assert (report.missing, report.unused, report.misshapen, report.positions) == ((), (), (), "")
    same = load_motion(motion_file(version), source := adapter_with(tiny_config, shape))
    assert same.taken == report.taken
    for name, tensor in target.motion.state_dict().items():
        assert torch.equal(tensor, source.motion.state_dict()[name]), name
    assert target.motion["up_blocks.0.motion_modules.0"].temporal_transformer.proj_out.weight.abs().max() > 0


def test_other_parts_are_left_alone(tiny_config, motion_file):
    target = adapter_with(tiny_config, VERSIONS["v2"])
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    load_motion(motion_file(), target)
    changed = {name for name, tensor in target.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("motion.") for name in changed)


def test_report_tells_of_the_middle_block(tiny_config, motion_file):
    report = load_motion(motion_file("v3"), adapter_with(tiny_config, VERSIONS["v2"]))
    assert len(report.missing) == TENSORS_IN_A_MODULE
    assert "not in the file, left as they were (28):\n    mid_block.motion_modules.0 (28 tensors)" in report.summary()
    report = load_motion(motion_file("v2"), adapter_with(tiny_config, VERSIONS["v3"]))
    assert len(report.unused) == TENSORS_IN_A_MODULE
    assert "in the file, not used (28):\n    mid_block.motion_modules.0 (28 tensors)" in report.summary()


def test_shorter_position_table_is_continued_by_the_same_sinusoids(tiny_config, motion_file):
    target = adapter_with(tiny_config, VERSIONS["v3"])
    before = {name: tensor.clone() for name, tensor in target.motion.state_dict().items() if name.endswith(".pe")}
    report = load_motion(motion_file("v1"), target)
    assert report.positions == "24 rows taken from the file, the other 8 are the fixed sinusoids, which continue it"
    assert report.positions in report.summary()
    for name, table in before.items():
        assert torch.equal(target.motion.state_dict()[name], table)


def test_shorter_table_of_other_values_is_told(tiny_config, motion_file):
    def learnt(tensors):
        return {name: tensor + 0.5 if name.endswith(".pe") else tensor for name, tensor in tensors.items()}

    report = load_motion(motion_file("v1", change=learnt), adapter_with(tiny_config, VERSIONS["v3"]))
    assert "though the file's differ from those by up to 0.5" in report.positions


def test_longer_position_table_is_cut(tiny_config, motion_file):
    target = adapter_with(tiny_config, dataclasses.replace(VERSIONS["v3"], max_frames=16))
    report = load_motion(motion_file("v3"), target)
    assert report.positions == "the first 16 of the file's 32 rows taken"
    assert not report.misshapen


def test_misshapen_and_foreign_tensors_are_told_and_skipped(tiny_config, motion_file):
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"

    def damaged(tensors):
        return {**tensors, name: tensors[name][:5].clone(), "conv_in.weight": torch.zeros(3)}

    target = adapter_with(tiny_config, VERSIONS["v2"])
    before = target.motion.state_dict()[name].clone()
    report = load_motion(motion_file(change=damaged), target)
    assert report.misshapen == (f"{name} [5, 16], expected [16, 16]",)
    assert report.unused == ("conv_in.weight",)
    assert torch.equal(target.motion.state_dict()[name], before)
    assert report.misshapen[0] in report.summary()
    assert "    conv_in.weight" in report.summary()


def test_module_for_other_widths_is_refused(motion_file):
    with torch.device("meta"):
        sd15 = LivePhotoAdapter(AdapterConfig())
    with pytest.raises(LivePhotoError, match=r"widths \(16, 32\), the adapter's are \(320, 640, 1280, 1280\): give one for"):
        load_motion(motion_file(), sd15)


def test_sdxl_module_is_refused(tiny_config, tmp_path):
    base = BaseShape(block_channels=(16, 32, 32), layers_per_block=1, block_attention=(True,) * 3, context_width=24, norm_groups=8)
    sdxl_like = LivePhotoAdapter(dataclasses.replace(tiny_config, base=base))
    save_file(dict(sdxl_like.motion.state_dict()), tmp_path / "mm_sdxl.safetensors")
    with pytest.raises(LivePhotoError, match=r"widths \(16, 32, 32\), the adapter's are \(16, 32\)"):
        load_motion(tmp_path / "mm_sdxl.safetensors", LivePhotoAdapter(tiny_config))


class Unsafe:
    def __reduce__(self):
        return print, ("this must not run",)


def bad_files(folder, adapter):
    save_adapter(adapter, folder / "live.safetensors")
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(2), "patch_embedding.bias": torch.zeros(2)}, folder / "wan.safetensors")
    save_file({"down_blocks.0.motion_modules.0.norm.weight": torch.zeros(2)}, folder / "diffusers.safetensors")
    site = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
    save_file({site: torch.zeros(16)}, folder / "sparse.safetensors")
    torch.save({site: Unsafe()}, folder / "unsafe.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({site: torch.zeros(1000)}, folder / "whole.ckpt")
    (folder / "cut.ckpt").write_bytes((folder / "whole.ckpt").read_bytes()[:1500])
    (folder / "text.ckpt").write_text("hello")
    (folder / "empty.ckpt").touch()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("live.safetensors", "no AnimateDiff motion module, it looks like a LivePhoto adapter: give it as start_adapter"),
        ("wan.safetensors", "no AnimateDiff motion module, it looks like a Wan video model: give a file such as"),
        ("diffusers.safetensors", "its names are diffusers'"),
        ("sparse.safetensors", "only on the way down, as a SparseCtrl has"),
        ("unsafe.ckpt", "holds more than tensors, and code in checkpoints is never run; get it again"),
        ("list.ckpt", "holds a list, not named tensors"),
        ("cut.ckpt", r"no readable .ckpt \(PytorchStreamReader failed reading zip archive.*\): it is incomplete or damaged"),
        ("text.ckpt", "no readable .ckpt .*: it is incomplete or damaged; get it again"),
        ("empty.ckpt", r"no readable .ckpt \(EOFError\): it is incomplete or damaged; get it again"),
        ("none.ckpt", "does not exist"),
        ("none.safetensors", "does not exist"),
        (".", "is a folder"),
    ],
)
def test_wrong_file_is_named_in_one_line(tiny_config, tiny_adapter, tmp_path, capsys, name, cause):
    bad_files(tmp_path, tiny_adapter)
    with pytest.raises(LivePhotoError, match=cause) as raised:
        load_motion(tmp_path / name, LivePhotoAdapter(tiny_config))
    assert "\n" not in str(raised.value)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that no one can read, whatever the permissions")
def test_what_the_system_says_is_passed_on(tiny_config, tmp_path):
    (tmp_path / "disk.ckpt").symlink_to("/proc/self/mem")
    with pytest.raises(LivePhotoError, match=r"cannot read \S+disk\.ckpt: Input/output error; check its permissions"):
        load_motion(tmp_path / "disk.ckpt", LivePhotoAdapter(tiny_config))


class NormOfEachFrame(torch.nn.Module):
    """AnimateDiff's group norm sees one frame at a time; diffusers' port norms over all frames of a clip."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        frames = x.shape[2]
        return rearrange(self.norm(rearrange(x, "b c f h w -> (b f) c h w")), "(b f) c h w -> b c f h w", f=frames)


@pytest.mark.parametrize("version", VERSIONS)
def test_diffusers_motion_unet_computes_the_same(tiny_config, tiny_unet, tiny_condition, motion_file, version):
    adapter = adapter_with(tiny_config, VERSIONS[version])
    load_motion(motion_file(version), adapter)
    theirs = MotionAdapter(
        block_out_channels=tiny_config.base.block_channels,
        motion_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        motion_max_seq_length=VERSIONS[version].max_frames,
        use_motion_mid_block=VERSIONS[version].mid_block,
    )
    converted = convert_animatediff_checkpoint_to_diffusers(dict(adapter.motion.state_dict()))
    unexpected = theirs.load_state_dict(converted, strict=False)
    assert not unexpected.unexpected_keys
    assert all("pos_embed" in name for name in unexpected.missing_keys)
    motion_unet = UNetMotionModel.from_unet2d(tiny_unet, theirs).eval()
    for block in [*motion_unet.down_blocks, motion_unet.mid_block, *motion_unet.up_blocks]:
        for module in getattr(block, "motion_modules", None) or []:
            module.norm = NormOfEachFrame(module.norm)

    frames = 6
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, frames, 8, 8, generator=generator)
    text = torch.randn(2 * frames, 7, tiny_config.base.context_width, generator=generator)
    flat = rearrange(noisy, "b c f h w -> (b f) c h w")
    with torch.no_grad():
        expected = rearrange(motion_unet(noisy, 500, text).sample, "b c f h w -> (b f) c h w")
        plain = tiny_unet(flat, 500, text).sample
        host = DiffusersHost(tiny_unet, adapter)
        with host, host.conditioned(tiny_condition(2, frames)):
            ours = tiny_unet(flat, 500, text).sample
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1e-2, "the motion modules must have an effect for this to prove anything"
