"""Every mistake of a user's: one line that names the fix, exit code 2, no half-written file."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from livephoto_core.checkpoint import CONFIG_KEY, load_adapter, save_tensors
from livephoto_core.cli import main
from livephoto_core.config import to_json
from livephoto_core.media_write import write_clip


@pytest.fixture
def work(tmp_path, tiny_base_folder, tiny_adapter_file):
    """A folder with a photo, and the arguments of an `animate` that would succeed."""
    Image.effect_noise((80, 60), 60).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path, {
        "photo": str(tmp_path / "photo.png"),
        "text": "camera pans left",
        "--steps": "1",
        "--model": str(tiny_adapter_file),
        "--base": str(tiny_base_folder),
        "--out": str(tmp_path / "out.mp4"),
    }


def animate(arguments):
    values = dict(arguments)
    return main(["animate", values.pop("photo"), values.pop("text"), *(word for pair in values.items() for word in pair)])


def refused(code, capsys, folder, *parts):
    """The command failed as it should: exit code 2, one line with all `parts`, nothing new in the folder."""
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.strip() and "%|" not in line]
    assert code == 2
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("livephoto: ")
    for part in parts:
        assert part in lines[0], lines[0]
    left = {path.name for path in folder.iterdir()}
    assert not {name for name in left if name.startswith((".", "out"))}, left


OPTIONS = {
    "level 0": ({"--intensity": "0"}, ["1 to 10", "'0'"]),
    "level 11": ({"--intensity": "11"}, ["1 to 10", "'11'"]),
    "level nan": ({"--intensity": "nan"}, ["1 to 10", "'nan'"]),
    "level fast": ({"--intensity": "fast"}, ["1 to 10", "'fast'"]),
    "a wrong level in a list": ({"--intensity": "1,3,12"}, ["1 to 10", "'12'"]),
    "an empty list item": ({"--intensity": "1,,3"}, ["1 to 10", "''"]),
    "1 frame": ({"--frames": "1"}, ["2 to 16 frames", "got 1"]),
    "too many frames": ({"--frames": "17"}, ["2 to 16 frames", "got 17"]),
    "size not divisible by 8": ({"--size": "100"}, ["multiple of 8", "got 100", "try 96"]),
    "size that is no number": ({"--size": "big"}, ["--size", "'big'", "livephoto animate --help"]),
    "empty text": ({"text": ""}, ["the text is empty", "say what moves"]),
    "blank text": ({"text": " \n "}, ["the text is empty"]),
    "500-word text": ({"text": "camera pans left and " * 125}, ["500 words", "77 tokens", "shorten the text"]),
    "unknown fit": ({"--fit": "zoom"}, ["'zoom'", "crop, pad, stretch"]),
    "no steps": ({"--steps": "0"}, ["1 to 999"]),
    "cfg below 1": ({"--cfg": "0"}, ["cfg", "from 1"]),
    "negative seed": ({"--seed": "-1"}, ["seed"]),
    "prior of one number": ({"--prior": "0.1"}, ["--prior", "0.033,0.016"]),
    "rate of 0": ({"--fps": "0"}, ["frame rate"]),
    "rate of a slide show": ({"--fps": "0.001"}, ["frame rate", "0.001"]),
    "rate past all": ({"--fps": "1e10"}, ["frame rate", "0.1 to 240"]),
    "rate past a gif's": ({"--fps": "60", "-o": "out.gif"}, ["frame rate of a .gif", "0.1 to 50"]),
    "too wide a webp": (
        {"--intensity": "1,2,3,4,5,6,7,8,9", "--size": "2048", "-o": "out.webp"},
        ["18432x2048 pixels", "a .webp holds 16383"],
    ),
    "too wide an mp4": (
        {"--intensity": "1,2,3,4,5,6,7,8,9", "--size": "2048"},
        ["18432x2048 pixels", "a .mp4 holds 16384", "write a .png"],
    ),
    "text of other bytes": ({"text": "caf\udce9"}, ["not UTF-8", "livephoto animate --help"]),
    "negative text of other bytes": ({"--negative": "caf\udce9"}, ["not UTF-8"]),
    "no such device": ({"--device": "gpu9"}, ["'gpu9'", "--device cpu"]),
    "unknown suffix": ({"--out": "clip.avi"}, ["clip.avi", ".mp4, .webp, .gif, .png"]),
    "no such folder": ({"--out": "none/clip.mp4"}, ["none", "create the folder"]),
    "no base": ({"--base": "none"}, ["no base model at none"]),
    "no model": ({"--model": "none.safetensors"}, ["none.safetensors does not exist"]),
    "no LoRA": ({"--lora": "none.safetensors"}, ["no LoRA file at none.safetensors"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_option(work, capsys, monkeypatch, name):
    folder, arguments = work
    monkeypatch.chdir(folder)
    changes, parts = OPTIONS[name]
    refused(animate({**arguments, **changes}), capsys, folder, *parts)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_photo_that_is_no_image(work, capsys, content):
    folder, arguments = work
    (folder / "photo.png").write_bytes(content)
    refused(animate(arguments), capsys, folder, "photo.png", "as a picture")


def test_photo_cut_off(work, capsys):
    folder, arguments = work
    Image.effect_noise((200, 200), 60).save(folder / "photo.png")
    whole = (folder / "photo.png").read_bytes()
    (folder / "photo.png").write_bytes(whole[: len(whole) // 2])
    refused(animate(arguments), capsys, folder, "photo.png", "as a picture")


def test_photo_that_is_a_folder_or_missing(work, capsys):
    folder, arguments = work
    refused(animate({**arguments, "photo": str(folder)}), capsys, folder, "is a folder")
    refused(animate({**arguments, "photo": "none.jpg"}), capsys, folder, "none.jpg does not exist")


def test_the_clip_does_not_replace_its_photo(work, capsys):
    folder, arguments = work
    (folder / "link.png").symlink_to(folder / "photo.png")
    before = (folder / "photo.png").read_bytes()
    for name in ("photo.png", "link.png"):
        refused(animate({**arguments, "--out": str(folder / name)}), capsys, folder, name, "the photo itself", "another name")
    assert (folder / "photo.png").read_bytes() == before


def test_unwritable_output(work, capsys):
    folder, arguments = work
    (folder / "taken.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder / "none" / "clip.mp4")
    refused(animate({**arguments, "--out": str(folder / "link.mp4")}), capsys, folder, "link.mp4", "create the folder")
    refused(animate({**arguments, "--out": str(folder / "taken.mp4")}), capsys, folder, "taken.mp4", "a folder")
    assert main(["animate", arguments["photo"], "still", "--out", "/proc/out.mp4", "--model", arguments["--model"],
                 "--base", arguments["--base"], "--steps", "1"]) == 2  # fmt: skip
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("livephoto: cannot write /proc/out.mp4")


FULL_DISK = """
import resource, signal, sys
from livephoto_core.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files, which stands in for a full disk")
@pytest.mark.parametrize("old", [None, b"an older clip"])
def test_full_disk(work, old):
    folder, arguments = work
    out = folder / "out.webp"
    if old is not None:
        out.write_bytes(old)
    command = ["animate", arguments["photo"], "still", "--steps", "1", "-o", str(out)]
    command += ["--model", arguments["--model"], "--base", arguments["--base"]]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"livephoto: cannot write {out}")
    assert (out.read_bytes() if out.exists() else None) == old
    assert {path.name for path in folder.iterdir()} <= {"photo.png", "out.webp"}


def saved_with(path, config, tensors):
    save_tensors(tensors, path, {CONFIG_KEY: to_json(config)})


@pytest.fixture
def checkpoint(work, tiny_adapter_file):
    """(path of a checkpoint to spoil, its config, its tensors)."""
    folder, arguments = work
    adapter = load_adapter(tiny_adapter_file)
    arguments["--model"] = str(folder / "model.safetensors")
    return folder / "model.safetensors", adapter.config, adapter.state_dict()


def test_checkpoint_of_another_family(work, checkpoint, capsys):
    path, config, tensors = checkpoint
    text = to_json(config).replace('"family": "sd15"', '"family": "wan21"')
    save_tensors(tensors, path, {CONFIG_KEY: text})
    refused(animate(work[1]), capsys, work[0], "model.safetensors", "'wan21'", "'sd15'")


def test_checkpoint_that_is_no_livephoto(work, checkpoint, capsys):
    path, _, _ = checkpoint
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2)}, path)
    refused(animate(work[1]), capsys, work[0], "not a LivePhoto checkpoint", "LoRA")


def test_truncated_checkpoint(work, checkpoint, capsys):
    path, config, tensors = checkpoint
    saved_with(path, config, tensors)
    whole = path.read_bytes()
    for length in (0, 5, 2000, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(animate(work[1]), capsys, work[0], "model.safetensors", "get it again")


def test_checkpoint_with_a_missing_tensor(work, checkpoint, capsys):
    path, config, tensors = checkpoint
    del tensors["stem.conv.weight"]
    saved_with(path, config, tensors)
    refused(animate(work[1]), capsys, work[0], "missing", "stem.conv.weight", "get it again")


def test_checkpoint_with_a_misshapen_tensor(work, checkpoint, capsys):
    path, config, tensors = checkpoint
    tensors["stem.conv.weight"] = tensors["stem.conv.weight"][:-1]
    saved_with(path, config, tensors)
    refused(animate(work[1]), capsys, work[0], "misshapen", "stem.conv.weight", "get it again")


def test_checkpoint_for_another_base(work, checkpoint, capsys):
    from livephoto_core.model.adapter import LivePhotoAdapter

    path, config, _ = checkpoint
    wider = replace(config, base=replace(config.base, latent_channels=4))
    saved_with(path, wider, LivePhotoAdapter(wider).state_dict())
    refused(animate(work[1]), capsys, work[0], "latent_channels 4", "12")


def test_base_without_its_image_encoder(work, capsys, tmp_path_factory):
    import shutil

    folder, arguments = work
    bare = tmp_path_factory.mktemp("bare") / "base"
    shutil.copytree(arguments["--base"], bare, ignore=shutil.ignore_patterns("image_encoder"))
    refused(animate({**arguments, "--base": str(bare)}), capsys, folder, "needs the image encoder tiny", "--image-encoder")


def test_base_that_is_an_empty_folder_or_no_checkpoint(work, capsys):
    folder, arguments = work
    (folder / "empty").mkdir()
    refused(animate({**arguments, "--base": str(folder / "empty")}), capsys, folder, "empty lacks vae")
    (folder / "junk.safetensors").write_bytes(b"junk")
    refused(animate({**arguments, "--base": str(folder / "junk.safetensors")}), capsys, folder, "--tokenizer DIR")


def truncated_video(folder):
    clip = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    write_clip(clip, folder / "cut.mp4")
    whole = (folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    return folder / "cut.mp4"


def test_measure_of_what_is_no_clip(work, capsys):
    folder, arguments = work
    model = ["--model", arguments["--model"]]
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("not a video")
    cases = {truncated_video(folder): "cannot", folder / "empty": "no pictures", folder / "text.mp4": "cannot", "none": "exist"}
    for path, part in cases.items():
        refused(main(["measure", str(path), *model]), capsys, folder, str(path), part)
    refused(main(["measure", str(folder / "photo.png"), *model]), capsys, folder, "photo.png", "one frame")


def test_calibrate_on_what_is_no_set_of_clips(work, capsys):
    folder, _ = work
    (folder / "empty").mkdir()
    refused(main(["calibrate", str(folder / "empty")]), capsys, folder, "empty", "clips")
    refused(main(["calibrate", str(folder / "none")]), capsys, folder, "none is no folder")
    (folder / "set").mkdir()
    (folder / "set" / "list.csv").write_text("file,words\na.mp4,pan\n")
    refused(main(["calibrate", str(folder / "set")]), capsys, folder, "file,words", "path,caption", "videoid,name,page_dir")
    (folder / "set" / "list.csv").unlink()
    truncated_video(folder / "set")
    refused(main(["calibrate", str(folder / "set")]), capsys, folder, "none of 1 clips can be used", "cut.mp4")


def test_calibrate_into_what_is_no_checkpoint(work, capsys):
    folder, arguments = work
    refused(main(["calibrate", str(folder), "--write", arguments["photo"]]), capsys, folder, "photo.png", "safetensors")


def test_inspect_of_what_is_no_checkpoint(work, capsys):
    folder, arguments = work
    refused(main(["inspect", str(folder / "none.safetensors")]), capsys, folder, "does not exist")
    refused(main(["inspect", arguments["photo"]]), capsys, folder, "no LivePhoto settings")
    names = "blocks.0.self_attn.q.weight", "patch_embedding.weight", "text_reweight.cross_attn_0.q.weight"
    save_file({name: torch.zeros(2) for name in names}, folder / "base.safetensors")
    refused(main(["inspect", str(folder / "base.safetensors")]), capsys, folder, "models/diffusion_models", "Load LivePhoto-Wan2.1")
    refused(main(["inspect", arguments["--model"], "--text", "still"]), capsys, folder, "needs a base model", "--base")
    base = ["--base", arguments["--base"]]
    refused(main(["inspect", arguments["--model"], "--text", " ", *base]), capsys, folder, "the text is empty")


def test_wrong_command_line(work, capsys):
    for command in ([], ["fly"], ["animate"], ["animate", "a.png", "still"], ["measure", "--flag"]):
        refused(main(command), capsys, work[0], "--help")


def test_train_without_a_config(work, capsys):
    refused(main(["train", str(work[0] / "none.toml")]), capsys, work[0], "none.toml")
