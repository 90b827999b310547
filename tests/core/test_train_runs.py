"""`livephoto train` from its config file: what it refuses in one line, and what its cache of clips is made of."""

import json
import os
import shutil
import tarfile
from dataclasses import asdict, replace

import pytest
import torch

from livephoto_core.base import load_base
from livephoto_core.checkpoint import load_adapter, read_config, save_adapter
from livephoto_core.cli import main
from livephoto_core.data.clips import Skipped, Window
from livephoto_core.data.folder import FolderSource
from livephoto_core.data.source import PlainFolder, open_source
from livephoto_core.errors import LivePhotoError
from livephoto_core.media_write import write_clip
from livephoto_core.training import cache as cache_module
from livephoto_core.training import caching
from livephoto_core.training.cache import (
    SHARD,
    CachedClips,
    EncodedClip,
    Manifest,
    cache_stream,
    fill_shards,
    finish_cache,
    read_manifest,
    shard_path,
)
from livephoto_core.training.config import RunConfig, run_from_dict
from livephoto_core.training.encode import encode_sample
from livephoto_core.training.run import adapter_config_of, prepare

CLIPS = 12


def encoded(index, channels=12, width=24, frames=2):
    """A clip that tells its number."""
    return EncodedClip(torch.full((frames, channels, 8, 8), index / 8), torch.zeros(64, width), (8, 8), index / 100, str(index))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Twelve clips of rising motion and their CSV."""
    folder = tmp_path_factory.mktemp("clips")
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(CLIPS, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for index in range(CLIPS):
        write_clip(picture + index / 20 * (noise[index] - 0.5), folder / f"{index:02}.webp")
    rows = [f"{index:02}.webp,the camera pans left" for index in range(CLIPS)]
    (folder / "clips.csv").write_text("\n".join(["path,caption", *rows]))
    return folder


@pytest.fixture
def config(tmp_path, clip_folder, tiny_base_folder, tiny_adapter_file):
    """The values of a run over `clip_folder`; keyword arguments replace them, `data` those of its section."""

    def make(data=None, **values):
        return {
            "base": str(tiny_base_folder),
            "out": str(tmp_path / "run"),
            "start_adapter": str(tiny_adapter_file),
            "data": {"kind": "folder", "path": str(clip_folder), "held_out": 1, **(data or {})},
            "steps": 1,
            "batch": 2,
            **values,
        }

    return make


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `livephoto train` on values, which must end in exit code 2 and one line with all the words."""

    def run(values, *words, options=()):
        path = tmp_path / "config.yaml"
        path.write_bytes(values if isinstance(values, bytes) else json.dumps(values).encode())
        capsys.readouterr()
        assert main(["train", str(path), *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line and "it/s" not in line]
        assert len(lines) == 1 and lines[0].startswith("livephoto: "), lines
        for word in words:
            assert word in lines[0], lines[0]

    return run


def test_sources_that_cannot_be_used(config, refused, tmp_path, clip_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(config({"path": str(empty)}), "is empty")
    (empty / "clips.csv").write_text("file,text\n1.webp,snow falls\n")
    refused(config({"path": str(empty)}), "has the columns file,text", "path,caption")
    (empty / "clips.csv").write_text("path,caption\n1.webp,snow falls\n")
    refused(config({"path": str(empty)}), "none of 1 clips can be used", "1.webp")
    refused(config({"path": str(tmp_path / "none")}), "is not a folder")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_bases_and_adapters_that_cannot_be_used(config, refused, tmp_path, tiny_base_folder, tiny_adapter_file):
    refused(config(base=str(tmp_path / "none")), "no base model")
    single = tmp_path / "single.safetensors"
    single.write_bytes(b"x")
    refused(config(base=str(single)), "set tokenizer to a folder")
    other = asdict(read_config(tiny_adapter_file))
    other["base"]["block_channels"] = (16, 16, 32)
    values = config(adapter=other)
    del values["start_adapter"]
    refused(values, "block_channels", "load the base model")
    refused(config(adapter=other), "start_adapter and adapter")
    refused(config(frames_per_clip=3), "frames_per_clip is 3")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base_folder, bare, ignore=shutil.ignore_patterns("image_encoder"))
    refused(config(base=str(bare)), "set image_encoder")
    assert not (tmp_path / "run").exists(), "nothing was cached"


def test_a_base_that_trains_is_not_written_over_the_one_it_starts_from(config, refused, tmp_path, tiny_base_folder):
    base = tmp_path / "base"
    shutil.copytree(tiny_base_folder, base)
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    values = config(base=str(base), out=str(tmp_path / "x" / ".." / "base"), freeze_base=False)
    refused(values, "written over", str(base), "set out to another folder")
    refused(config(out=str(base), image_encoder=str(base / "image_encoder"), freeze_base=False), "written over")
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before


def test_a_checkpoint_goes_on_with_what_its_base_predicts(config, refused, tmp_path, tiny_adapter_file):
    adapter = load_adapter(tiny_adapter_file)
    adapter.config = replace(adapter.config, prediction_type="epsilon")
    save_adapter(adapter, tmp_path / "eps.safetensors")
    refused(config(start_adapter=str(tmp_path / "eps.safetensors")), "predicts epsilon", "predicts v_prediction", "start_adapter")


def test_a_cache_of_another_base(config, refused, tmp_path):
    for name, clip, words in (
        ("channels", encoded(1, channels=4), ("4 latent channels", "takes 12")),
        ("width", encoded(1, width=32), ("32 wide image tokens", "takes 24")),
        ("frames", encoded(1, frames=4), ("4 frames a clip", "takes 2")),
    ):
        cache_stream(tmp_path / name, [clip])
        refused(config({"kind": "cache", "path": str(tmp_path / name)}), *words)
    cache_stream(tmp_path / "vae", [encoded(1)], Manifest({"the VAE": "0123"}))
    refused(config({"kind": "cache", "path": str(tmp_path / "vae")}), "another the VAE (0123, now ")
    refused(config({"kind": "cache", "path": str(tmp_path)}), "no cached clips")


@pytest.fixture
def without_levels(tiny_adapter_file, tmp_path):
    """A checkpoint that has no levels yet."""
    adapter = load_adapter(tiny_adapter_file)
    adapter.config = replace(adapter.config, ssim_thresholds=())
    save_adapter(adapter, tmp_path / "without.safetensors")
    return str(tmp_path / "without.safetensors")


def test_a_cache_knows_on_what_its_levels_were_measured(config, without_levels, tmp_path):
    for source in ("frames", "reconstruction"):
        folder = tmp_path / source
        cache_stream(folder, map(encoded, range(12)), Manifest({"data.intensity_from": source}))
        data = {"kind": "cache", "path": str(folder), "intensity_from": "frames"}
        model, *_ = prepare(run_from_dict(config(data, start_adapter=without_levels)))
        assert model.adapter.config.intensity_from == source


def test_sample_sheets_without_an_image_encoder_are_refused_at_the_start(config, refused, tiny_base_folder, tmp_path):
    shutil.copytree(tiny_base_folder, tmp_path / "base", ignore=shutil.ignore_patterns("image_encoder"))
    cache_stream(tmp_path / "cache", map(encoded, range(12)))
    data = {"kind": "cache", "path": str(tmp_path / "cache")}
    values = config(data, base=str(tmp_path / "base"))
    refused({**values, "sample_every": 1}, "no image encoder, which sample sheets need", "sample_every to 0")
    prepare(run_from_dict({**values, "sample_every": 0}))


def test_levels_of_the_start_must_be_of_what_the_clips_were_measured_on(config, refused, tmp_path):
    """Those of the demo are of reconstructions: raw frames would all come out too strong."""
    folder = tmp_path / "cache"
    cache_stream(folder, map(encoded, range(4)), Manifest({"data.intensity_from": "reconstruction"}))
    cached = config({"kind": "cache", "path": str(folder)})
    refused(cached, "measured on 'reconstruction'", "are of 'frames'", "cache them again")
    refused(config({"intensity_from": "reconstruction"}), "set data.intensity_from to 'frames'")


def test_levels_in_the_config_must_be_of_what_the_clips_are_measured_on(config, refused, tiny_adapter_file):
    """As `calibrate --base` prints them: of reconstructions, where the clips are measured on frames unless told otherwise."""
    values = config()
    del values["start_adapter"]
    adapter = asdict(read_config(tiny_adapter_file))
    pasted = {**values, "adapter": {**adapter, "intensity_from": "reconstruction"}}
    refused(pasted, "adapter.ssim_thresholds are of 'reconstruction'", "data.intensity_from to 'reconstruction'")
    forgotten = {**config({"intensity_from": "reconstruction"}), "adapter": adapter}
    del forgotten["start_adapter"]
    refused(forgotten, "measured on 'reconstruction'", "set adapter.intensity_from to that")


def test_a_checkpoints_motion_modules_are_not_replaced(config, refused):
    refused({**config(), "motion_modules": "mm.safetensors"}, "start_adapter and motion_modules", "leave one of them out")


def test_where_a_run_lies(config, refused, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(config(out=str(tmp_path / "file" / "run")), "out is", "is a file")
    refused(config({"cache": str(tmp_path / "file")}), "data.cache is", "is a file")
    refused(config(), "nothing to resume", options=["--resume"])
    (tmp_path / "run").mkdir()
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(b"PK, but no more")
    refused(config(), "holds a run", "--resume", "another out")
    refused(config(), "state.pt cannot be read", options=["--resume"])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"data": 5}, ["data is 5", "a table"]),
        ({"data": {"kind": "folder"}}, ["data.path is ''"]),
        ({"data": {"path": "x", "held_out": -1}}, ["data.held_out is -1", "0 or more"]),
        ({"data": {"path": "x", "csv": None}}, ["data.csv is None", "a text"]),
        ({"adapter": 5}, ["adapter", "5"]),
        ({"sample_texts": "snow"}, ["sample_texts is 'snow'", "a list of texts"]),
        ({"sample_texts": [5]}, ["sample_texts[0] is 5", "a text"]),
        ({"rate_factors": {"adapter": "slow"}}, ["rate_factors.adapter is 'slow'", "a number"]),
        ({"text_drop": "x"}, ["text_drop is 'x'", "a number"]),
        ({"learning_rate": "nan"}, ["learning_rate is 'nan'", "a number"]),
        ({"learning_rate": 0}, ["learning_rate is 0", "more than 0"]),
        ({"freeze_base": 1}, ["freeze_base is 1", "true or false"]),
        ({"steps": 2.5}, ["steps is 2.5", "a whole number"]),
        ({"batch": 0}, ["batch is 0", "1 or more"]),
        ({"accumulate": 0}, ["accumulate is 0", "1 or more"]),
        ({"save_every": 0}, ["save_every is 0", "1 or more"]),
        ({"validate_every": -1}, ["validate_every is -1", "0 or more"]),
    ],
)
def test_values_are_named(values, words):
    with pytest.raises(LivePhotoError) as caught:
        run_from_dict({"base": "b", "data": {"kind": "cache", "path": "x"}, **values})
    for word in words:
        assert word in str(caught.value)


def test_values_that_may_be(config):
    run = run_from_dict(config(learning_rate="1e-4", text_drop=1, validate_every=0, sample_every=0, sample_texts=["snow"]))
    assert (run.learning_rate, run.text_drop, run.sample_texts) == (1e-4, 1.0, ("snow",))


def test_configs_that_are_no_text(refused):
    refused("base: \xe9t\xe9".encode("latin-1"), "not UTF-8")
    refused(b"[1, 2]", "names and values")
    refused(b"1: 2", "unknown names 1")


def test_motion_modules_need_the_linear_schedule(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "mm.safetensors"
    place = "motion_modules.0.temporal_transformer"
    table = "transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    names = [f"{block}.{place}.{table}" for block in ("down_blocks.0", "up_blocks.0")]
    save_file({name: torch.zeros(1, 24, 8) for name in names}, path)
    run = RunConfig(base="b", motion_modules=str(path))
    with pytest.raises(LivePhotoError, match=r"schedule\.kind is 'scaled_linear'.*'linear'"):
        adapter_config_of(run)
    linear = replace(run.adapter, schedule=replace(run.adapter.schedule, kind="linear"))
    motion = adapter_config_of(replace(run, adapter=linear)).motion
    assert (motion.max_frames, motion.attention_blocks, motion.mid_block) == (24, 2, False)
    own = replace(linear, motion=replace(linear.motion, max_frames=16))
    assert adapter_config_of(replace(run, adapter=own)).motion.max_frames == 16


@pytest.mark.parametrize("change", ["size", "csv", "vae", "intensity_from"])
def test_a_cache_is_used_only_for_what_it_was_made_from(change, config, tmp_path, clip_folder, tiny_base_folder, without_levels):
    clips = tmp_path / "clips"
    shutil.copytree(clip_folder, clips)
    shutil.copytree(tiny_base_folder, tmp_path / "base")
    values = config({"path": str(clips)}, base=str(tmp_path / "base"), start_adapter=without_levels)
    prepare(run_from_dict(values))
    written = shard_path(tmp_path / "run" / "cache", 0).stat().st_mtime_ns
    prepare(run_from_dict(values))
    assert shard_path(tmp_path / "run" / "cache", 0).stat().st_mtime_ns == written
    words = {"csv": "the CSV's contents", "vae": "the VAE", "size": "adapter.size", "intensity_from": "data.intensity_from"}
    if change == "csv":
        (clips / "clips.csv").write_text((clips / "clips.csv").read_text() + "\nmore.webp,snow falls")
    elif change == "vae":
        vae = load_base(tmp_path / "base").vae
        with torch.no_grad():
            vae.encoder.conv_in.weight.mul_(1.5)
        vae.save_pretrained(tmp_path / "base" / "vae")
    elif change == "size":
        values["adapter"] = {**asdict(read_config(values.pop("start_adapter"))), "size": 32}
    else:
        values["data"]["intensity_from"] = "reconstruction"
    with pytest.raises(LivePhotoError, match=f"another {words[change]}.*data.cache to another folder, or delete"):
        prepare(run_from_dict(values))


def test_a_cache_is_of_its_clips_wherever_they_lie(config, refused, tmp_path, clip_folder, capsys):
    clips, moved = tmp_path / "clips", tmp_path / "moved"
    shutil.copytree(clip_folder, clips)
    cached = {"cache": str(tmp_path / "cache")}
    prepare(run_from_dict(config({"path": str(clips), **cached})))
    written = shard_path(tmp_path / "cache", 0).stat().st_mtime_ns
    clips.rename(moved)
    os.utime(moved / "clips.csv", (0, 0))
    assert len(prepare(run_from_dict(config({"path": str(moved), **cached})))[1].clips) == CLIPS
    capsys.readouterr()
    assert len(prepare(run_from_dict(config({"path": str(clips), **cached})))[1].clips) == CLIPS, "the clips are gone"
    assert "clips is not a folder" in capsys.readouterr().out
    assert shard_path(tmp_path / "cache", 0).stat().st_mtime_ns == written
    with open(moved / "clips.csv", "a") as file:
        file.write("more.webp,snow falls\n")
    refused(config({"path": str(moved), **cached}), "the CSV's contents", "data.kind to 'cache'", str(tmp_path / "cache"))
    prepare(run_from_dict(config({"kind": "cache", "path": str(tmp_path / "cache")})))


def test_shards_are_told_by_name_and_size(tmp_path):
    pytest.importorskip("webdataset")
    write_clip(torch.rand(2, 3, 16, 16), tmp_path / "clip.gif")
    told = []
    for folder, count in (("one", 1), ("other place", 1), ("more", 2)):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "a.tar", "w") as tar:
            for number in range(count):
                (tmp_path / "clip.txt").write_text("snow falls")
                for suffix in ("gif", "txt"):
                    tar.add(tmp_path / f"clip.{suffix}", f"{number}.{suffix}")
        data = {"kind": "webdataset", "path": str(tmp_path / folder)}
        run = run_from_dict({"base": "b", "data": data})
        told.append(caching.origin_of(run, run.adapter, caching.open_clips(run.data, run.adapter)))
    assert told[0] == told[1] != told[2]


def test_a_disk_too_small_for_the_cache_is_told_after_the_first_shard(config, refused, tmp_path, monkeypatch):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_clip(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), clips / "clip.gif")
    count = 3 * SHARD
    (clips / "clips.csv").write_text("\n".join(["path,caption", *["clip.gif,snow falls"] * count]))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        refused(config({"path": str(clips)}), f"{count} clips of", "room for 0.0 GB more", "data.cache", "content.image_size")
    assert read_manifest(tmp_path / "run" / "cache").counts == [SHARD]
    prepare(run_from_dict(config({"path": str(clips)})))
    assert read_manifest(tmp_path / "run" / "cache").finished


def test_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "OPEN_SHARDS", 1)
    cache_stream(tmp_path, map(encoded, range(3 * SHARD)))
    clips = CachedClips(tmp_path)
    chosen = [0, 2 * SHARD, 1, SHARD, 2 * SHARD + 1]
    assert clips.latents(chosen)[:, 0, 0, 0, 0].tolist() == [i / 8 for i in chosen]


def test_a_killed_caching_goes_on(tmp_path):
    seen = []

    def stream(first, stop=None):
        for index in range(first, 3 * SHARD):
            if index == stop:
                raise KeyboardInterrupt
            seen.append(index)
            yield Skipped(str(index), "broken") if index == 3 else encoded(index)

    with pytest.raises(KeyboardInterrupt):
        cache_stream(tmp_path, stream(0, 2 * SHARD - 5))
    left = read_manifest(tmp_path)
    assert (left.position, left.counts, left.finished) == (SHARD + 1, [SHARD], False)
    with pytest.raises(LivePhotoError, match="stopped after 32 clips"):
        CachedClips(tmp_path)
    seen.clear()
    assert cache_stream(tmp_path, stream(left.position), left) == 3 * SHARD - 1
    assert seen[0] == SHARD + 1
    assert CachedClips(tmp_path).captions == [str(i) for i in range(3 * SHARD) if i != 3]
    assert read_manifest(tmp_path).skipped == [["3", "broken"]]


def test_a_killed_caching_opens_no_cached_clip_again(config, tmp_path, monkeypatch):
    clips = tmp_path / "clips"
    clips.mkdir()
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for index in range(SHARD + 2):
        write_clip(picture, clips / f"{index:02}.gif")
    (clips / "clips.csv").write_text("\n".join(["path,caption", *(f"{i:02}.gif,{i}" for i in range(SHARD + 2))]))
    run = run_from_dict(config({"path": str(clips)}))

    def killed(item, *rest):
        if item.name == f"{SHARD + 1}.gif":
            raise KeyboardInterrupt
        return encode_sample(item, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(caching, "encode_sample", killed)
        prepare(run)
    for index in range(SHARD):
        (clips / f"{index:02}.gif").unlink()
    _, batches, *_ = prepare(run)
    assert batches.clips.captions == [str(i) for i in range(SHARD + 2)]


def test_shards_of_an_older_cache_are_not_read(tmp_path):
    cache_stream(tmp_path, map(encoded, range(2 * SHARD)))
    cache_stream(tmp_path, map(encoded, range(5)))
    assert len(CachedClips(tmp_path)) == 5


def test_a_grown_cache_has_no_gaps(tmp_path):
    for count in (5, 2 * SHARD + 1, SHARD + 3):
        for process in range(2):
            fill_shards(tmp_path, count, encoded, process, 2)
        finish_cache(tmp_path, count, {})
        clips = CachedClips(tmp_path)
        assert clips.captions == [str(i) for i in range(count)]
        assert clips.latents([count - 1])[0, 0, 0, 0, 0] == (count - 1) / 8


def test_a_cache_without_a_manifest_is_read(tmp_path):
    cache_stream(tmp_path, map(encoded, range(5)))
    (tmp_path / "cache.json").unlink()
    assert len(CachedClips(tmp_path)) == 5


def test_damaged_caches_are_named(tmp_path):
    def fill(name):
        cache_stream(tmp_path / name, map(encoded, range(SHARD + 1)))
        return tmp_path / name

    path = shard_path(fill("cut"), 1)
    path.write_bytes(path.read_bytes()[:-10])
    shard_path(fill("gone"), 0).unlink()
    (fill("text") / "cache.json").write_text("{")
    for name, words in {"cut": "00001.safetensors are damaged", "gone": "00000.safetensors", "text": "cache.json cannot"}.items():
        with pytest.raises(LivePhotoError, match=f"{words}.*delete"):
            CachedClips(tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(LivePhotoError, match=r"cannot create .*data\.cache"):
        cache_stream(tmp_path / "file" / "cache", [encoded(0)])


def test_one_way_to_open_a_source(clip_folder, tmp_path):
    window = Window(2, 1, 32)
    for data, kind in ((clip_folder, None), (clip_folder, "folder"), (clip_folder / "clips.csv", None)):
        source = open_source(data, window, kind)
        assert isinstance(source, FolderSource) and len(source) == CLIPS
    write_clip(torch.rand(2, 3, 32, 32), tmp_path / "a.webp")
    assert isinstance(open_source(tmp_path, window), PlainFolder)
    with pytest.raises(LivePhotoError, match="has no CSV"):
        open_source(tmp_path, window, "folder")
