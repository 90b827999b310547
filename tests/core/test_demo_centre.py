"""Looks at the photo that turn and scale round the picture's middle are given a middle of their own."""

from dataclasses import replace

import pytest
import torch

from livephoto_core.checkpoint import load_adapter, read_config, save_adapter
from livephoto_core.cli import main
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.demo import centre
from livephoto_core.media import read_clip
from livephoto_core.media_write import write_picture
from livephoto_core.model.adapter import LivePhotoAdapter


def uncentred(folder, **content):
    """A demo model's folder with an adapter of the shipped one's weights, its looks turning round the picture's middle."""
    shipped = load_adapter(DEMO_FOLDER / "adapter.safetensors")
    config = replace(shipped.config, content=replace(shipped.config.content, centred=False, **content))
    adapter = LivePhotoAdapter(config)
    adapter.load_state_dict(shipped.state_dict(), strict=False)
    folder.mkdir()
    save_adapter(adapter, folder / "adapter.safetensors")
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["centre", *map(str, arguments)])
    centre.main()


def test_one_command_centres_a_demo_that_makes_the_same_clip(tmp_path, monkeypatch):
    before, after = uncentred(tmp_path / "before"), tmp_path / "after"
    run(monkeypatch, after, "--model", before)
    assert read_config(after / "adapter.safetensors").content.centred
    centres = {n: t for n, t in load_adapter(after / "adapter.safetensors").state_dict().items() if "to_centre" in n}
    assert centres and not any(tensor.any() for tensor in centres.values())
    write_picture(torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0)), tmp_path / "photo.png")
    clips = []
    for folder in (before, after):
        out = tmp_path / f"{folder.name}.webp"
        files = ["--model", str(folder / "adapter.safetensors"), "--base", str(DEMO_FOLDER)]
        assert main(["animate", str(tmp_path / "photo.png"), "camera zooms in", "--steps", "2", *files, "-o", str(out)]) == 0
        clips.append(read_clip(out).frames)
    assert torch.equal(*clips)


def test_what_cannot_be_centred_is_refused(tmp_path, monkeypatch):
    once = tmp_path / "once"
    run(monkeypatch, once, "--model", uncentred(tmp_path / "before"))
    with pytest.raises(SystemExit, match="centre: the adapter's looks have a middle of their own already"):
        run(monkeypatch, tmp_path / "twice", "--model", once)
    placeless = uncentred(tmp_path / "placeless", positions="none")
    with pytest.raises(SystemExit, match="centre: the adapter does not look at places"):
        run(monkeypatch, tmp_path / "twice", "--model", placeless)
    with pytest.raises(SystemExit, match=r"centre: .*nothing"):
        run(monkeypatch, tmp_path / "twice", "--model", tmp_path / "nothing")
    assert not (tmp_path / "twice").exists()
