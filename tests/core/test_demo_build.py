"""The demo model made again from nothing by one command, each step of it as short as can be."""

import pytest
import torch

from livephoto_core.checkpoint import read_config
from livephoto_core.cli import main
from livephoto_core.demo import build, clip_cache, padding, patches
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.phrasings import phrasings
from livephoto_core.media import read_clip
from livephoto_core.media_write import write_picture
from livephoto_core.training.cache import finish_cache
from livephoto_core.training.config import load_run
from livephoto_core.training.run import train, words_of

CLIPS = 80


@pytest.fixture
def in_this_process(monkeypatch):
    """No photo package, and no process of its own for what is trained and encoded."""
    generator = torch.Generator().manual_seed(0)
    photos = [Photo(str(n), (255 * torch.rand(3, 96, 128, generator=generator)).byte()) for n in range(3)]
    for module in (clip_cache, patches):
        monkeypatch.setattr(module, "package_photos", lambda: (photos, photos))

    def make_cache(encoders, out, count, processes):
        clip_cache.make_share(encoders, out, count, 0, 1)
        finish_cache(out, count, clip_cache.origin_of(encoders, count))

    def launch(processes, module, *arguments):
        if module == patches.__name__:
            with monkeypatch.context() as patched:
                patched.setattr("sys.argv", [module, *arguments])
                patches.main()
        else:
            command, config, *resume = arguments
            assert module == "livephoto_core.cli" and command == "train"
            train(config, bool(resume))

    monkeypatch.setattr(build, "make_cache", make_cache)
    monkeypatch.setattr(build, "launch", launch)
    for name, value in {"TEST_STILLS": 4, "COMPONENT_STILLS": 32, "TEXT_STEPS": 2}.items():
        monkeypatch.setattr(build, name, value)
    for name, value in {"STEPS": 2, "MIXED_TEXTS": 20}.items():
        monkeypatch.setattr(padding, name, value)


def test_one_command_makes_a_demo_that_animates(in_this_process, tmp_path, monkeypatch):
    short = ("vae-steps", "patch-steps", "still-steps", "steps", "camera-steps", "whole-steps", "further-steps", "guess-steps")
    options = [part for name in short for part in (f"--{name}", "1")]
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path), "--clips", str(CLIPS), "--processes", "1", *options])
    build.main()
    demo = tmp_path / "demo"
    config = read_config(demo / "adapter.safetensors")
    assert (config.shared_noise, config.shared_noise_still) == (build.SHARED_NOISE, build.SHARED_NOISE_STILL)
    assert len(config.ssim_thresholds) == 9
    last = load_run(tmp_path / "guesses.yaml")
    assert last.own_guesses > 0 and last.data.unguessed == build.UNTOLD and last.data.fine_levels
    write_picture(torch.rand(3, 80, 80), tmp_path / "photo.png")
    files = ["--base", str(demo), "--model", str(demo / "adapter.safetensors")]
    out = tmp_path / "clip.webp"
    assert main(["animate", str(tmp_path / "photo.png"), "camera pans left", "--steps", "2", *files, "-o", str(out)]) == 0
    assert read_clip(out).frames.shape == (16, 3, 64, 64)


def test_what_no_text_tells_is_known_by_its_words():
    untold = {"snow", "rain", "ripple", "flicker", "ball appears", "fireworks"}
    for motion, texts in phrasings().items():
        for text in texts:
            assert words_of(text).isdisjoint(build.UNTOLD) == (motion not in untold), text
    assert set(build.UNTOLD) <= {word for texts in phrasings().values() for text in texts for word in words_of(text)}


def test_too_few_clips_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path / "demo"), "--clips", "71"])
    with pytest.raises(SystemExit, match="--clips is 71: use 72 or more"):
        build.main()
    assert not (tmp_path / "demo").exists()
