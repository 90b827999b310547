"""What a run starts from and what it leaves: shards, AnimateDiff's motion modules, the SD1.5 recipe, the average and the log."""

import io
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import livephoto_core
from livephoto_core.checkpoint import load_adapter, read_config
from livephoto_core.cli import main
from livephoto_core.config import from_dict
from livephoto_core.demo import photos
from livephoto_core.demo.photos import load_photos
from livephoto_core.demo.phrasings import phrasings
from livephoto_core.demo.source import ProceduralSource, photos_at
from livephoto_core.errors import LivePhotoError
from livephoto_core.media_write import write_clip, write_picture
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.training.cache import CachedClips
from livephoto_core.training.config import load_run
from livephoto_core.training.trainer import Average

CLIPS, CAPTION = 12, "the camera pans left"
RECIPES = Path(livephoto_core.__file__).parent / "training" / "recipes"


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A tar of clips and their captions."""
    folder = tmp_path_factory.mktemp("shards")
    noise = torch.rand(CLIPS, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with tarfile.open(folder / "clips-000.tar", "w") as tar:
        for number, clip in enumerate(noise):
            write_clip(clip[:1] * (1 - number / 20) + clip * number / 20, folder / "clip.webp")
            for name, content in (("webp", (folder / "clip.webp").read_bytes()), ("txt", CAPTION.encode())):
                info = tarfile.TarInfo(f"{number:03}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "clip.webp").unlink()
    return folder / "clips-000.tar"


@pytest.fixture
def trained(tmp_path, tiny_base_folder, shard):
    """Runs `livephoto train` on the shard, with more values; returns its folder."""

    def run(**values):
        config = {
            "base": str(tiny_base_folder),
            "out": str(tmp_path / "run"),
            "data": {"kind": "webdataset", "path": str(shard), "held_out": 1},
            "steps": 1,
            "batch": 2,
            "validate_every": 1,
            **values,
        }
        (tmp_path / "run.json").write_text(json.dumps(config))
        (tmp_path / "run.json").rename(tmp_path / "run.yaml")
        assert main(["train", str(tmp_path / "run.yaml")]) == 0
        return tmp_path / "run"

    return run


def test_shards_are_trained_on_and_logged(trained, tiny_adapter_file):
    folder = trained(start_adapter=str(tiny_adapter_file))
    clips = CachedClips(folder / "cache")
    assert len(clips) == CLIPS and set(clips.captions) == {CAPTION}
    before, after = (load_adapter(path).state_dict() for path in (tiny_adapter_file, folder / "adapter.safetensors"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    log = EventAccumulator(str(folder / "log"))
    log.Reload()
    assert {"loss", "validation/x0_100", "validation/x0_980", "validation/repeat"} <= set(log.Tags()["scalars"])
    held_out = clips.latents([0])
    expected = float((held_out[:, :1] - held_out).square().mean())
    assert log.Scalars("validation/repeat")[0].value == pytest.approx(expected, rel=1e-4)


def test_procedural_clips_are_drawn_and_trained_on(trained, tiny_adapter_file, tmp_path, capsys):
    config = read_config(tiny_adapter_file)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        blocks = torch.rand(3, 8, 10, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        write_picture(blocks, pictures / f"{number}.png")
    data = {"kind": "procedural", "path": str(pictures), "clips": 24, "held_out": 2}
    folder = trained(start_adapter=str(tiny_adapter_file), data=data)
    clips = CachedClips(folder / "cache")
    assert len(clips) == 24 and clips.latent_shape[0] == config.frames
    source = ProceduralSource(photos_at(str(pictures), config.size), 24, 2, config.frames, config.size)
    assert clips.captions == [sample.caption for sample in source]
    assert torch.equal(next(source.after(7)).frames, source.sample(7).frames)
    shown = {photo.name for photo in source.photos[0]}
    assert shown and shown.isdisjoint(photo.name for photo in source.photos[1])
    # another number of clips is another set
    values = json.loads((tmp_path / "run.yaml").read_text())
    values |= {"out": str(tmp_path / "other"), "data": {**data, "clips": 25, "cache": str(folder / "cache")}}
    (tmp_path / "again.yaml").write_text(json.dumps(values))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "again.yaml")]) == 2
    assert "data.clips" in capsys.readouterr().err
    # so are other photographs under the same names
    write_picture(torch.rand(3, 64, 80), pictures / "4.png")
    (tmp_path / "again.yaml").write_text(json.dumps({**values, "data": {**values["data"], "clips": 24}}))
    assert main(["train", str(tmp_path / "again.yaml")]) == 2
    assert "the photographs" in capsys.readouterr().err
    # and what was drawn to be held out stays so
    kept = {"kind": "cache", "path": str(folder / "cache"), "held_out": 1}
    (tmp_path / "again.yaml").write_text(json.dumps({**values, "data": kept}))
    assert main(["train", str(tmp_path / "again.yaml")]) == 2
    assert "set it to 2" in capsys.readouterr().err


def test_a_photograph_is_drawn_as_people_see_it(tmp_path):
    """Turned as its EXIF says, and in the size that the clips need."""
    shown = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(50, 1).repeat_interleave(50, 2)
    picture = Image.fromarray((shown * 255).byte().permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    # lies on its side in the file
    picture.rotate(90, expand=True).save(tmp_path / "photo.png", exif=exif)
    [photo] = load_photos([tmp_path], 300)
    assert photo.pixels.shape == (3, 300, 400)
    assert (photo.pixels.float() / 255 - shown).abs().mean() < 0.02


def test_a_phones_photograph_is_no_animation(tmp_path):
    """With its small second picture."""
    picture = Image.fromarray((torch.rand(80, 100, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy())
    picture.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[picture.resize((20, 16))])
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[picture.rotate(90, expand=False)])
    assert [photo.name for photo in load_photos([tmp_path])] == ["phone.jpg"]


def test_photographs_have_one_order_on_every_system(tmp_path):
    names = ["B.png", "a.png", "b/A.png", "b-c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture(torch.rand(3, 64, 64), tmp_path / name)
    assert [photo.name for photo in load_photos([tmp_path])] == ["B.png", "a.png", "A.png", "b-c.png"]


def test_photo_packages_of_other_versions_are_refused(monkeypatch):
    """The demo would be measured on what it learnt from."""
    monkeypatch.setattr(photos, "PACKAGES", {"torch": torch.__version__, "PIL": "0.1"})
    with pytest.raises(LivePhotoError, match=r"those of PIL==0\.1 \(installed: none\): pip install PIL==0\.1$"):
        photos.package_folders()
    monkeypatch.setattr(photos, "PACKAGES", {"numpy": "0.1", "torch": torch.__version__})
    with pytest.raises(LivePhotoError, match=rf"numpy==0\.1 \(installed: {re.escape(np.__version__)}\)"):
        photos.package_folders()


@pytest.mark.parametrize("pictures", [0, 3])
def test_too_few_photographs_to_draw_over(pictures, tmp_path):
    for number in range(pictures):
        write_picture(torch.rand(3, 64, 64), tmp_path / f"{number}.png")
    with pytest.raises(LivePhotoError, match=f"holds {pictures} photographs, too few"):
        photos_at(str(tmp_path))
    with pytest.raises(LivePhotoError, match="is not a folder"):
        photos_at(str(tmp_path / "none"))


def test_a_run_starts_from_animatediffs_motion_modules(trained, tiny_adapter_file, randomised, tmp_path):
    values = asdict(read_config(tiny_adapter_file))
    values["schedule"]["kind"] = "linear"
    source = randomised(LivePhotoAdapter(from_dict(values)), seed=7).motion.state_dict()
    save_file(source, tmp_path / "mm.safetensors")
    folder = trained(adapter=values, motion_modules=str(tmp_path / "mm.safetensors"), learning_rate=1e-12, weight_decay=0)
    taken = load_adapter(folder / "adapter.safetensors").motion.state_dict()
    for name, tensor in source.items():
        assert torch.allclose(taken[name], tensor, atol=1e-3), name


@pytest.mark.parametrize("name", ["things", "further"])
def test_the_demos_recipes_go_on_from_the_demo(name, monkeypatch):
    monkeypatch.chdir(RECIPES.parents[2])
    run = load_run(RECIPES / f"demo_{name}.toml")
    assert Path(run.base).is_dir() and Path(run.start_adapter).is_file() and not run.freeze_base
    config = read_config(run.start_adapter)
    assert (run.shared_noise, run.shared_noise_still) == (config.shared_noise, config.shared_noise_still)
    assert set(run.data.repeats) <= {word for texts in phrasings().values() for text in texts for word in text.split()}


def test_the_recipe_for_sd15_is_the_papers():
    run = load_run(RECIPES / "sd15.toml")
    assert run.freeze_base and run.text_drop == 0.5 and run.optimizer == "adamw" and run.shared_noise == -1
    assert (run.motion_weight, run.first_frame_weight, run.padding_penalty, run.word_penalty) == (0, 1, 0, 0)
    assert run.adapter.schedule.kind == "linear" and run.adapter.shared_noise == 0


def test_the_average_follows_the_weights_and_soon_forgets_the_start():
    weight = torch.nn.Parameter(torch.zeros(1))
    average, expected = Average({"w": weight}, 0.5), 0.0
    for step, decay in enumerate([0.1, 2 / 11, 0.25, 4 / 13]):
        weight.data.fill_(step + 1.0)
        average.update({"w": weight}, step)
        expected = decay * expected + (1 - decay) * (step + 1)
    assert float(average.values["w"]) == pytest.approx(expected)
    average.update({"w": weight}, 1000)
    assert float(average.values["w"]) == pytest.approx(0.5 * expected + 0.5 * 4)
