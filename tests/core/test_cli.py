"""The command line from its arguments to its files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from livephoto_core import cli
from livephoto_core.base import Base
from livephoto_core.checkpoint import load_adapter, read_config, read_metadata, save_adapter
from livephoto_core.cli import _is_out_of_memory, main
from livephoto_core.commands import bench
from livephoto_core.commands.inspect_file import describe
from livephoto_core.commands.model_files import DEMO_FOLDER, precision_for
from livephoto_core.encoding import decode, encode_photo
from livephoto_core.intensity import calibrate, clip_ssim
from livephoto_core.media import read_clip
from livephoto_core.media_write import read_settings, write_clip


@pytest.fixture
def model(tiny_base_folder, tiny_adapter_file):
    return ["--model", str(tiny_adapter_file), "--base", str(tiny_base_folder)]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((80, 60), 60).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def clips(tmp_path):
    """A folder of twelve clips, from still to strong motion."""
    folder = tmp_path / "clips"
    folder.mkdir()
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(12, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for index in range(12):
        write_clip(picture + index / 40 * (noise[index] - 0.5), folder / f"clip{index:02}.webp")
    return folder


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif", ".png"])
def test_animate(photo, model, tmp_path, capsys, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["animate", photo, "camera pans left", "--steps", "1", "--seed", "3", *model, "-o", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    settings = read_settings(out)
    assert (settings["text"], settings["seed"], settings["steps"], settings["intensity"]) == ("camera pans left", 3, 1, 5.0)
    assert (settings["frames"], settings["size"], settings["cfg"]) == (2, 64, 4.0)
    assert settings["model"] == "tiny.safetensors"
    if suffix != ".png":
        assert read_clip(out).frames.shape == (2, 3, 64, 64)
    assert sorted(os.listdir(tmp_path)) == sorted(["photo.png", out.name])


def test_lcm_has_few_steps_and_no_guidance_unless_told(photo, model, tmp_path):
    out = tmp_path / "out.png"
    for said, steps, cfg in (([], 6, 1.0), (["--steps", "2"], 2, 1.0), (["--cfg", "1.5"], 6, 1.5)):
        assert main(["animate", photo, "still", "--sampler", "lcm", *said, *model, "-o", str(out)]) == 0
        settings = read_settings(out)
        assert (settings["sampler"], settings["steps"], settings["cfg"]) == ("lcm", steps, cfg)
    assert main(["animate", photo, "still", "--cfg", "1", *model, "-o", str(out)]) == 0
    assert read_settings(out)["steps"] == 20


GUIDANCE = {
    "nothing said": ([], 2.5, 1.0),
    "stronger": (["--cfg", "4"], 4.0, 1.0),
    "even": (["--min-cfg", "2.5"], 2.5, 2.5),
    "none": (["--cfg", "1"], 1.0, None),
    "lcm": (["--sampler", "lcm"], 1.0, None),
}


@pytest.mark.parametrize("said, cfg, min_cfg", GUIDANCE.values(), ids=GUIDANCE)
def test_the_guidance_of_the_demo_rises_from_none(photo, tmp_path, said, cfg, min_cfg):
    out = tmp_path / "out.png"
    assert main(["animate", photo, "still", "--steps", "1", "--frames", "2", *said, "-o", str(out)]) == 0
    settings = read_settings(out)
    assert (settings["cfg"], settings["min_cfg"]) == (cfg, min_cfg)


def test_levels_as_a_sheet_and_side_by_side(photo, model, tmp_path):
    common = ["animate", photo, "still", "--steps", "1", "--intensity", "1,3.5,10", *model]
    assert main([*common, "-o", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * 128
    assert main([*common, "-o", str(tmp_path / "side.webp")]) == 0
    assert read_clip(tmp_path / "side.webp").frames.shape == (2, 3, 64, 192)
    assert read_settings(tmp_path / "side.webp")["intensity"] == [1.0, 3.5, 10.0]


def test_same_seed_same_bytes(photo, model, tmp_path):
    """In processes of their own, so that no state is shared."""
    outs = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for out in outs:
        arguments = ["animate", photo, "camera pans left", "--steps", "2", *model, "-o", str(out)]
        done = subprocess.run([sys.executable, "-m", "livephoto_core.cli", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "animate" in done.stderr, "a progress bar is shown"
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_measure_of_what_animate_wrote(photo, model, tmp_path, capsys):
    out = tmp_path / "out.webp"
    main(["animate", photo, "still", "--steps", "1", *model, "-o", str(out)])
    capsys.readouterr()
    assert main(["measure", str(out), "--json", *model[:2]]) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["frames"] == 2, "its frames are already a training stride apart"
    assert result["ssim"] == pytest.approx(clip_ssim(read_clip(out).frames).item(), abs=1e-6)
    assert 1 <= result["level"] <= 10
    assert main(["measure", str(out), *model[:2]]) == 0
    assert capsys.readouterr().out.startswith("clip")


def test_levels_side_by_side_are_measured_each(photo, model, tmp_path, capsys):
    out = tmp_path / "out.webp"
    assert main(["animate", photo, "still", "--steps", "1", "--intensity", "1,5.5,10", *model, "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["measure", str(out), "--json", *model[:2]]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["asked"] for result in results] == [1, 5.5, 10]
    parts = read_clip(out).frames.tensor_split(3, dim=-1)
    assert [result["ssim"] for result in results] == pytest.approx([clip_ssim(part).item() for part in parts], abs=1e-6)
    assert main(["measure", str(out), *model[:2]]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == [f"{out} at 5.5", f"{out} at 10"]


def test_a_part_cut_out_of_levels_side_by_side_is_measured_as_one_clip(photo, model, tmp_path, capsys):
    """As an editor writes it, that keeps the record."""
    whole, part = tmp_path / "whole.webp", tmp_path / "part.webp"
    assert main(["animate", photo, "still", "--steps", "1", "--intensity", "1,5.5,10", *model, "-o", str(whole)]) == 0
    frames = read_clip(whole).frames[..., :64]
    write_clip(frames, part, settings=read_settings(whole))
    capsys.readouterr()
    assert main(["measure", str(part), "--json", *model[:2]]) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["asked"] is None and result["frames"] == 2
    assert result["ssim"] == pytest.approx(clip_ssim(read_clip(part).frames).item(), abs=1e-6)


def test_inspect(tiny_adapter_file, tiny_base_folder, capsys):
    assert main(["inspect", str(tiny_adapter_file)]) == 0
    shown = capsys.readouterr().out
    for part in ("sd15", "2 frames of 64x64 px", "scaled_linear", "0.9900", "motion modules", "made by", "rope, centred"):
        assert part in shown
    config = read_config(tiny_adapter_file)
    unplaced = replace(config, content=replace(config.content, positions="none"))
    assert any(line.endswith("positions none") for line in describe(tiny_adapter_file, unplaced))
    text = "the red circle spins"
    assert main(["inspect", str(tiny_adapter_file), "--base", str(tiny_base_folder), "--text", text]) == 0
    bars = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in bars] == text.split()
    assert all(0 <= float(line.split()[1]) <= 1 for line in bars)
    for shares, line in (
        ({}, "each frame's own"),
        ({"shared_noise": 0.6}, "0.6 of the variance shared by all frames"),
        ({"shared_noise": 0.5, "shared_noise_still": 0.9}, "0.9 (level 1) to 0.5 (level 10) of the variance shared by all frames"),
    ):
        said = describe(tiny_adapter_file, replace(read_config(tiny_adapter_file), **shares))
        assert [text.split("  ")[-1] for text in said if text.startswith("noise")] == [line]
    assert main(["inspect", str(tiny_adapter_file), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["config"]["frames"] == 2
    assert sum(described["parameters"].values()) == sum(p.numel() for p in load_adapter(tiny_adapter_file).parameters())


def test_inspect_a_clip(photo, model, tmp_path, capsys):
    out = tmp_path / "out.gif"
    main(["animate", photo, "still", "--steps", "1", *model, "-o", str(out)])
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "still"


def test_calibrate_prints_the_thresholds(clips, capsys):
    (clips / "broken.mp4").write_bytes(b"no video")
    assert main(["calibrate", str(clips), "--frames", "4", "--stride", "1", "--size", "32"]) == 0
    printed = capsys.readouterr()
    expected = calibrate(clip_ssim(read_clip(path).frames).item() for path in sorted(clips.glob("*.webp")))
    *_, thresholds, measured_on = printed.out.splitlines()
    assert measured_on == 'intensity_from = "frames"', "to be pasted into a training config with them"
    found = json.loads(thresholds.removeprefix("ssim_thresholds = "))
    assert found == pytest.approx(expected, abs=1e-5)
    assert "1 clip skipped" in printed.err
    assert "broken.mp4" in printed.err


def test_calibrate_writes_into_a_checkpoint(clips, tiny_adapter_file, tiny_base_folder, tmp_path, capsys):
    checkpoint = tmp_path / "adapter.safetensors"
    adapter = load_adapter(tiny_adapter_file)
    adapter.config = config = replace(adapter.config, frame_stride=1, ssim_thresholds=())
    save_adapter(adapter, checkpoint, {"made by": "tests"})
    before = adapter.state_dict()
    assert main(["calibrate", str(clips), "--write", str(checkpoint)]) == 0
    after = read_config(checkpoint)
    assert len(after.ssim_thresholds) == 9 and after.intensity_from == "frames"
    assert (after.base, after.motion, after.size) == (config.base, config.motion, config.size)
    assert all(torch.equal(value, before[name]) for name, value in load_adapter(checkpoint).state_dict().items())
    assert read_metadata(checkpoint) == {"made by": "tests"}
    assert main(["calibrate", str(clips), "--write", str(checkpoint), "--replace", "--base", str(tiny_base_folder)]) == 0
    restored = read_config(checkpoint)
    assert restored.ssim_thresholds != after.ssim_thresholds, "as the VAE restores the clips"
    assert restored.intensity_from == "reconstruction"
    capsys.readouterr()
    assert main(["inspect", str(checkpoint)]) == 0
    assert "measured on reconstruction" in capsys.readouterr().out


def printed_thresholds(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-2].removeprefix("ssim_thresholds = "))


def test_calibrate_measures_what_the_whole_base_restores(clips, tiny_base, tiny_base_folder, tmp_path, capsys):
    common = ["calibrate", str(clips), "--frames", "4", "--stride", "1", "--size", "32", "--device", "cpu"]
    frames = [read_clip(path).frames for path in sorted(clips.glob("*.webp"))]
    with torch.no_grad():
        expected = calibrate(clip_ssim(decode(tiny_base, encode_photo(tiny_base, clip))).item() for clip in frames)
    folder = tmp_path / "only the VAE"
    shutil.copytree(tiny_base_folder / "vae", folder / "vae")
    for base in (tiny_base_folder, folder):
        assert main([*common, "--base", str(base)]) == 0
        assert printed_thresholds(capsys) == pytest.approx(expected, abs=1e-6)
    for arguments, said in (
        (["--base", str(tiny_base_folder / "vae")], "holds no config.json: give the folder of a VAE"),
        (["--base", str(tmp_path / "none")], "there is no base model at"),
        (["--device", "tpu9"], "cannot use the device 'tpu9'"),
    ):
        assert main([*common, *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line


def test_calibrate_by_the_first_clips(clips, capsys):
    common = ["calibrate", str(clips), "--frames", "4", "--stride", "1", "--size", "32", "--limit"]
    (clips / "clip00.webp").write_bytes(b"no video")
    assert main([*common, "10"]) == 0
    expected = calibrate(clip_ssim(read_clip(path).frames).item() for path in sorted(clips.glob("*.webp"))[1:11])
    assert printed_thresholds(capsys) == pytest.approx(expected, abs=1e-5)
    assert main([*common, "100"]) == 0
    assert capsys.readouterr().out.startswith("11 clips;")
    assert main([*common, "9"]) == 2
    assert "--limit is 9: 10 levels need 10 clips or more" in capsys.readouterr().err


def test_calibrate_stores_no_levels_of_other_clips(clips, tiny_adapter_file, capsys):
    before = tiny_adapter_file.read_bytes()
    assert main(["calibrate", str(clips), "--write", str(tiny_adapter_file), "--stride", "2"]) == 2
    assert "--stride is 2, but the levels of" in capsys.readouterr().err
    assert tiny_adapter_file.read_bytes() == before


def test_calibrate_keeps_the_levels_that_weights_learnt(clips, tiny_adapter_file, tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / "learnt.safetensors"
    checkpoint.write_bytes(tiny_adapter_file.read_bytes())
    with monkeypatch.context() as patch:
        measuring = "livephoto_core.commands.calibrate.many_clips_similarity"
        patch.setattr(measuring, lambda *_: pytest.fail("measured before it is refused"))
        assert main(["calibrate", str(clips), "--write", str(checkpoint)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    learnt = read_config(checkpoint).ssim_thresholds
    window = "--frames 2 --stride 4 --size 64"
    for part in (str(checkpoint), f"{learnt[0]:.4f} to {learnt[-1]:.4f}", "weights learnt", "level 5", "--replace", window):
        assert part in line
    assert checkpoint.read_bytes() == tiny_adapter_file.read_bytes()
    assert main(["calibrate", str(clips), *window.split()]) == 0
    seen = printed_thresholds(capsys)
    assert main(["calibrate", str(clips), "--write", str(checkpoint), "--replace"]) == 0
    assert read_config(checkpoint).ssim_thresholds == pytest.approx(seen, abs=1e-6)
    assert seen != pytest.approx(learnt, abs=1e-3)


def test_calibrate_names_what_it_skipped_where_too_little_is_left(clips, capsys):
    for path in sorted(clips.glob("*.webp"))[3:]:
        path.write_bytes(b"no video")
    assert main(["calibrate", str(clips), "--frames", "4", "--stride", "1", "--size", "32"]) == 2
    said = capsys.readouterr().err
    assert "9 clips skipped" in said and "10 levels need" in said


def test_a_demo_trained_further_is_guided_as_the_demo(photo, tmp_path, capsys):
    checkpoint = tmp_path / "further.safetensors"
    checkpoint.write_bytes((DEMO_FOLDER / "adapter.safetensors").read_bytes())
    found = []
    for files in (["--model", "demo"], ["--model", str(checkpoint), "--base", str(DEMO_FOLDER)]):
        out = tmp_path / "out.gif"
        assert main(["animate", photo, "still", "--steps", "1", "--frames", "2", *files, "-o", str(out)]) == 0
        found.append({name: read_settings(out)[name] for name in ("cfg", "min_cfg")})
    assert found[0] == found[1] == {"cfg": 2.5, "min_cfg": 1.0}


@pytest.mark.parametrize(
    ("known", "device", "precision"),
    [
        ({"avx512_bf16": True}, "cpu", "bf16"),
        ({"amx_bf16": True}, "cpu", "bf16"),
        ({"avx512_bf16": True}, "cuda", "fp32"),
        ({"avx512_bf16": False, "avx2": True}, "cpu", "fp32"),
        ({}, "cpu", "fp32"),
    ],
)
def test_auto_is_bf16_where_a_cpu_calculates_in_it(monkeypatch, known, device, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert precision_for("auto", device) == precision
    assert precision_for("fp32", device) == "fp32"


def test_a_torch_that_does_not_tell_what_the_cpu_can_computes_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision_for("auto", "cpu") == "fp32"


def test_a_clip_says_what_it_was_computed_in(photo, model, tmp_path):
    out = str(tmp_path / "out.gif")
    for given in ([], ["--precision", "fp32"], ["--precision", "bf16"]):
        assert main(["animate", photo, "still", "--steps", "1", *model, *given, "-o", out]) == 0
        wanted = given[-1] if given else precision_for("auto", "cpu")
        assert read_settings(out).get("precision", "fp32") == wanted


def test_a_path_that_the_system_refuses_is_one_line(photo, tmp_path, capsys):
    path, out = "x" * 300, str(tmp_path / "a.gif")
    for arguments in (["measure", photo, "--model", path], ["animate", photo, "still", "--base", path, "-o", out]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "give another path" in said


def test_memory_that_is_not_there_is_known_by_torchs_own_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert _is_out_of_memory(caught.value)
    assert not _is_out_of_memory(RuntimeError("the size of tensor a must match"))


def test_a_model_too_large_for_a_device_is_no_missing_device(photo, model, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Base, "to", full)
    assert main(["animate", photo, "still", *model, "-o", str(tmp_path / "out.webp")]) == 2
    printed = capsys.readouterr().err
    assert "not enough memory" in printed and "--precision bf16" in printed and "--device" not in printed


@pytest.mark.parametrize(
    ("arguments", "fix", "other"),
    [
        (["animate", "a.png", "still", "-o", "b.mp4"], ("--size", "--frames", "--precision bf16"), "accumulate"),
        (["train", "run.toml"], ("gradient_checkpointing", "accumulate", "mixed_precision", "--resume"), "--precision"),
        (["bench", "run", "-o", "report"], ("--batch", "--precision bf16"), "--frames"),
        (["calibrate", "clips"], ("--size", "--frames"), "--precision"),
        (["inspect", "demo"], ("a machine with more",), "--size"),
    ],
    ids=["animate", "train", "bench run", "calibrate", "inspect"],
)
def test_too_little_memory_is_one_line_with_what_helps_this_command(monkeypatch, capsys, arguments, fix, other):
    for place, name in ((cli, arguments[0]), (bench, "run")):
        monkeypatch.setattr(place, f"_{name}", lambda options: torch.empty(2**50), raising=False)
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("livephoto: not enough memory: ") and all(part in line for part in fix) and other not in line


def test_calibrate_by_a_csv(clips, capsys):
    rows = [f"{path.name},a clip" for path in sorted(clips.glob("*.webp"))]
    (clips / "clips.csv").write_text("\n".join(["path,caption", *rows]))
    common = ["--frames", "4", "--stride", "1", "--size", "32"]
    assert main(["calibrate", str(clips), *common]) == 0
    by_folder = capsys.readouterr().out
    assert main(["calibrate", str(clips / "clips.csv"), *common]) == 0
    assert capsys.readouterr().out == by_folder


def test_lora_changes_the_clip(photo, model, tmp_path):
    from safetensors.torch import save_file

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    pair = {f"{name}.lora_down.weight": torch.randn(2, 24), f"{name}.lora_up.weight": torch.randn(16, 2)}
    save_file(pair, tmp_path / "lora.safetensors")
    common = ["animate", photo, "still", "--steps", "1", *model]
    main([*common, "-o", str(tmp_path / "plain.png")])
    assert main([*common, "--lora", str(tmp_path / "lora.safetensors"), "-o", str(tmp_path / "lora.png")]) == 0
    assert read_settings(tmp_path / "lora.png")["loras"] == ["lora.safetensors"]
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "lora.png") as changed:
        assert plain.tobytes() != changed.tobytes()


def test_version_and_help(capsys):
    for arguments in (["--version"], ["--help"], ["animate", "--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "CONFIG" in capsys.readouterr().out
