import io
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import av
import pytest
import torch
from PIL import Image

from livephoto_core.data import clips
from livephoto_core.data.clips import (
    ClipSample,
    Skipped,
    Window,
    centre_crop,
    load_clip,
    pick_frames,
    readable_clips,
    report,
)
from livephoto_core.data.folder import FolderSource
from livephoto_core.data.shards import ShardSource
from livephoto_core.data.source import PlainFolder
from livephoto_core.errors import LivePhotoError
from livephoto_core.media import stream_clip
from livephoto_core.media_write import write_clip

SIZE = 16
CUT = {"frames": 4, "stride": 2, "size": SIZE}


def brightening(frames=12, height=24, width=32):
    """Frame f is a flat grey of f / 20, so a frame read tells which it was."""
    return (torch.arange(frames) / 20)[:, None, None, None].expand(frames, 3, height, width)


def indices(frames):
    return (frames.mean(dim=(1, 2, 3)) * 20).round().int().tolist()


def write_video(path, frames, codec, options=None):
    """A video that says at its start how it is built, so that it can be read when cut off."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "yuv420p"
        stream.gop_size = 1
        for frame in frames:
            pixels = (frame * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_csv(folder, *lines, name="clips.csv", encoding="utf-8"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def clip_bytes(tmp_path, suffix=".mp4", frames=12):
    path = tmp_path / f"packed{suffix}"
    if suffix == ".webm":
        write_video(path, brightening(frames), "libvpx")
    else:
        write_clip(brightening(frames), path)
    content = path.read_bytes()
    path.unlink()
    return content


# Windows


@pytest.mark.parametrize(
    ("total", "frames", "stride", "position", "chosen"),
    [
        (20, 4, 4, "centre", [3, 7, 11, 15]),
        (20, 4, 4, "start", [0, 4, 8, 12]),
        (13, 4, 4, "centre", [0, 4, 8, 12]),
        (12, 4, 4, "centre", [1, 4, 7, 10]),
        (4, 4, 4, "centre", [0, 1, 2, 3]),
        (5, 1, 4, "centre", [2]),
        (1, 1, 4, "start", [0]),
    ],
)
def test_window_of_frames(total, frames, stride, position, chosen):
    assert list(pick_frames(total, frames, stride, position)) == chosen


def test_every_window_lies_within_its_clip():
    for total in range(1, 40):
        for frames in range(1, total + 1):
            for stride in range(1, 6):
                chosen = pick_frames(total, frames, stride, "centre")
                assert len(chosen) == frames
                assert 0 <= chosen[0] <= chosen[-1] < total
                assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1


def test_clip_too_short_for_a_window():
    with pytest.raises(LivePhotoError, match="3 frames, 4 are needed"):
        pick_frames(3, 4, 1, "centre")


@pytest.mark.parametrize("field", ["frames", "stride", "size"])
def test_window_below_one(field):
    with pytest.raises(LivePhotoError, match=f"{field} must be 1 or more, got 0"):
        Window(**{"frames": 4, "stride": 2, "size": 8, field: 0})


def test_unknown_position():
    with pytest.raises(LivePhotoError, match=r"'end'.*centre, start"):
        Window(4, 2, 8, "end")


def test_crop_takes_the_middle():
    frames = torch.zeros(2, 3, 20, 60)
    frames[..., 20:40] = 1
    assert torch.equal(centre_crop(frames, 20), torch.ones(2, 3, 20, 20))
    assert centre_crop(frames, 7).shape == (2, 3, 7, 7)
    assert torch.equal(centre_crop(frames.mT, 20), torch.ones(2, 3, 20, 20))


# Reading


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp", ".gif"])
def test_window_of_a_file(tmp_path, suffix):
    (tmp_path / f"clip{suffix}").write_bytes(clip_bytes(tmp_path, suffix))
    frames = load_clip(tmp_path / f"clip{suffix}", Window(4, 2, SIZE))
    assert frames.shape == (4, 3, SIZE, SIZE)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    assert indices(frames) == [2, 4, 6, 8]
    assert indices(load_clip(tmp_path / f"clip{suffix}", Window(4, 2, SIZE, "start"))) == [0, 2, 4, 6]
    assert indices(load_clip(tmp_path / f"clip{suffix}", Window(6, 9, SIZE))) == [0, 2, 4, 6, 8, 10]


def test_equal_frames_merged_by_a_gif_count(tmp_path):
    frames = brightening()[[0, 0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11]]
    write_clip(frames, tmp_path / "clip.gif")
    assert indices(load_clip(tmp_path / "clip.gif", Window(4, 2, SIZE))) == [0, 4, 6, 8]


def test_folder_of_pictures(tmp_path):
    for index, frame in enumerate(brightening()):
        Image.new("RGB", (32, 24), (round(frame[0, 0, 0].item() * 255),) * 3).save(tmp_path / f"{index}.png")
    assert indices(load_clip(tmp_path, Window(4, 2, SIZE))) == [2, 4, 6, 8]


def test_a_video_is_read_up_to_the_last_frame_needed(tmp_path, monkeypatch):
    stops = []

    def watched(path, stride=1, start=0, stop=None):
        stops.append(stop)
        return stream_clip(path, stride, start, stop)

    monkeypatch.setattr(clips, "stream_clip", watched)
    for suffix in (".mp4", ".webm"):
        (tmp_path / f"clip{suffix}").write_bytes(clip_bytes(tmp_path, suffix))
        for position, needed in (("start", 5), ("centre", 8)):
            stops.clear()
            assert len(load_clip(tmp_path / f"clip{suffix}", Window(3, 2, SIZE, position))) == 3
            assert stops == [needed]


def test_video_shorter_than_its_header_says(tmp_path):
    noise = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", noise, "libx264", {"movflags": "faststart"})
    cut(tmp_path / "clip.mp4", 0.6)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].frames == 12
    assert load_clip(tmp_path / "clip.mp4", Window(4, 3, SIZE)).shape == (4, 3, SIZE, SIZE)
    with pytest.raises(LivePhotoError, match="12 are needed"):
        load_clip(tmp_path / "clip.mp4", Window(12, 1, SIZE))


# Folders


def test_plain_csv(tmp_path):
    (tmp_path / "more").mkdir()
    write_clip(brightening(), tmp_path / "a.mp4")
    write_clip(brightening(), tmp_path / "more" / "b.gif")
    write_csv(tmp_path, "path,caption", 'more/b.gif,"light, more light"', "a.mp4,naïve 猫", encoding="utf-8-sig")
    source = FolderSource(tmp_path, **CUT)
    samples = list(source)
    assert len(source) == 2
    assert [(sample.name, sample.caption) for sample in samples] == [
        ("more/b.gif", "light, more light"),
        ("a.mp4", "naïve 猫"),
    ]
    assert all(indices(sample.frames) == [2, 4, 6, 8] for sample in samples)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(source, samples, strict=True))


def test_webvid_csv(tmp_path):
    (tmp_path / "001_050").mkdir()
    write_clip(brightening(), tmp_path / "001_050" / "31.mp4")
    write_clip(brightening(8), tmp_path / "32.mp4")
    (tmp_path / "lists").mkdir()
    write_csv(
        tmp_path / "lists",
        "videoid,contentUrl,duration,page_dir,name",
        '31,https://example.org/31.mp4,PT00H00M10S,001_050,"Sea, with ""waves"""',
        "32,https://example.org/32.mp4,PT00H00M10S,001_050,Snow",
        "33,https://example.org/33.mp4,PT00H00M10S,001_050,Rain",
    )
    first, second, third = FolderSource(tmp_path, tmp_path / "lists" / "clips.csv", **CUT)
    assert (first.name, first.caption) == ("001_050/31.mp4", 'Sea, with "waves"')
    assert (second.name, second.caption) == ("32.mp4", "Snow")
    assert third.name == "001_050/33.mp4"
    assert "001_050/33.mp4 or 33.mp4 does not exist" in third.reason


def test_what_cannot_be_used_is_skipped_by_name(tmp_path):
    write_clip(brightening(), tmp_path / "good.mp4")
    write_clip(torch.rand(12, 3, 64, 64), tmp_path / "cut.mp4")
    cut(tmp_path / "cut.mp4", 0.6)
    write_clip(brightening(3), tmp_path / "short.mp4")
    (tmp_path / "text.mp4").write_text("not a video\n" * 20)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "no pictures").mkdir()
    write_csv(
        tmp_path,
        "path,caption",
        *(f"{name},x" for name in ("cut.mp4", "short.mp4", "text.mp4", "empty.mp4", "no pictures", "none.mp4")),
        f"{'n' * 300}.mp4,x",
        "good.mp4,",
        ",a caption",
        "good.mp4,one, two",
        "good.mp4,x",
    )
    skipped = []
    samples = list(readable_clips(FolderSource(tmp_path, **CUT), skipped))
    assert [sample.name for sample in samples] == ["good.mp4"]
    expected = {
        "cut.mp4": "cannot open",
        "short.mp4": "has 3 frames, 4 are needed",
        "text.mp4": "cannot open",
        "empty.mp4": "cannot open",
        "no pictures": "has no pictures",
        "none.mp4": "does not exist",
        f"{'n' * 300}.mp4": "does not exist",
        "good.mp4": "has no caption (clips.csv line 9)",
        "clips.csv line 10": "names no clip",
        "clips.csv line 11": "has 3 cells, the header 2; quote",
    }
    assert [item.name for item in skipped] == list(expected)
    for item in skipped:
        assert expected[item.name] in item.reason
        assert "\n" not in item.reason
    lines = report(skipped).splitlines()
    assert lines[0] == "10 clips skipped:"
    assert lines[1:] == [f"  {item.name}: {item.reason}" for item in skipped]


def test_gif_cut_anywhere_is_skipped_or_read(tmp_path):
    write_clip(brightening(5, 8, 8), tmp_path / "a.gif")
    whole = (tmp_path / "a.gif").read_bytes()
    write_csv(tmp_path, "path,caption", "a.gif,x")
    source = FolderSource(tmp_path, **CUT)
    for length in range(len(whole) // 2, len(whole)):
        (tmp_path / "a.gif").write_bytes(whole[:length])
        (item,) = source
        assert item.name == "a.gif"
        assert isinstance(item, ClipSample) or "\n" not in item.reason


def test_report_of_few():
    assert report([]) == "no clip skipped"
    assert report([Skipped("a.mp4", "is gone")]) == "1 clip skipped:\n  a.mp4: is gone"


def test_no_clip_can_be_used(tmp_path):
    write_csv(tmp_path, "path,caption", "a.mp4,x", "b.mp4,y")
    source = FolderSource(tmp_path)
    assert all(isinstance(item, Skipped) for item in source)
    with pytest.raises(LivePhotoError, match=r"none of 2 clips can be used; the first, a\.mp4: .*does not exist"):
        list(readable_clips(source, []))


def test_folders_without_clips(tmp_path):
    with pytest.raises(LivePhotoError, match="not a folder"):
        FolderSource(tmp_path / "none")
    with pytest.raises(LivePhotoError, match="is empty"):
        FolderSource(tmp_path)
    write_clip(brightening(4), tmp_path / "a.mp4")
    with pytest.raises(LivePhotoError, match=r"has no CSV; .*path,caption"):
        FolderSource(tmp_path)
    write_csv(tmp_path, "path,caption", "a.mp4,x", name="b.csv")
    write_csv(tmp_path, "path,caption", "a.mp4,x", name="c.csv")
    with pytest.raises(LivePhotoError, match=r"b\.csv, c\.csv"):
        FolderSource(tmp_path)
    with pytest.raises(LivePhotoError, match=r"d\.csv does not exist"):
        FolderSource(tmp_path, tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,caption\na.mp4,x\n", r"has the columns file,caption; give it path,caption or videoid,name,page_dir"),
        (b"videoid,name\n1,x\n", r"has the columns videoid,name; give it"),
        (b"", r"has the columns \(none\)"),
        (b"path,caption\n", "lists no clips"),
        (b"path,caption\na.mp4,caf\xe9\n", "is not UTF-8"),
        (b'path,caption\na.mp4,"open\nb.mp4,x\n', "line 3 is not well-formed"),
    ],
)
def test_unusable_csv(tmp_path, content, message):
    (tmp_path / "clips.csv").write_bytes(content)
    with pytest.raises(LivePhotoError, match=message) as error:
        FolderSource(tmp_path)
    assert str(tmp_path / "clips.csv") in str(error.value)
    assert "\n" not in str(error.value)


# Shards


def test_shards(tmp_path):
    pytest.importorskip("webdataset")
    mp4 = clip_bytes(tmp_path)
    write_shard(
        tmp_path / "clips-000.tar",
        {
            "b.mp4": mp4,
            "b.txt": "a wave, and 猫\n".encode(),
            "b.json": b'{"caption": "not this"}',
            "more/a.json": b'{"caption": "snow"}',
            "more/a.webm": clip_bytes(tmp_path, ".webm"),
        },
    )
    write_shard(tmp_path / "clips-001.tar", {"c.GIF": clip_bytes(tmp_path, ".gif"), "c.txt": b"rain"})
    source = ShardSource(tmp_path, **CUT)
    samples = list(source)
    assert all(isinstance(sample, ClipSample) for sample in samples)
    assert [(sample.name, sample.caption) for sample in samples] == [
        ("clips-000.tar:b", "a wave, and 猫"),
        ("clips-000.tar:more/a", "snow"),
        ("clips-001.tar:c", "rain"),
    ]
    assert all(indices(sample.frames) == [2, 4, 6, 8] for sample in samples)
    for shards in (
        str(tmp_path / "clips-{000..001}.tar"),
        [tmp_path / "clips-000.tar", str(tmp_path / "clips-001.tar")],
    ):
        assert [sample.name for sample in ShardSource(shards, **CUT)] == [sample.name for sample in samples]
    assert [sample.name for sample in ShardSource(tmp_path / "clips-001.tar", **CUT)] == ["clips-001.tar:c"]


def test_what_comes_after_the_first_clips_without_decoding_those(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    gif = tmp_path / "clip.gif"
    write_clip(brightening(), gif)
    folder, packed = tmp_path / "folder", tmp_path / "packed"
    folder.mkdir()
    packed.mkdir()
    for index in range(4):
        (folder / f"{index}.gif").write_bytes(gif.read_bytes())
    write_csv(folder, "path,caption", *(f"{index}.gif,{index}" for index in range(4)))
    for shard in ("ab", "cd"):
        members = {f"{key}.{suffix}": data for key in shard for suffix, data in (("gif", gif.read_bytes()), ("txt", key.encode()))}
        write_shard(packed / f"{shard}.tar", members)
    opened = []
    monkeypatch.setattr(clips, "stream_clip", lambda path, *window: opened.append(path) or stream_clip(path, *window))
    for source in (FolderSource(folder, **CUT), ShardSource(packed, **CUT), PlainFolder(folder, Window(**CUT))):
        whole = [item.name for item in source]
        decoded = len(opened)
        for count in range(5):
            opened.clear()
            assert [item.name for item in source.after(count)] == whole[count:]
            assert len(opened) == decoded * (4 - count) / 4
        opened.clear()


def test_items_come_in_order_whichever_is_done_first():
    under_way, release = [], threading.Event()

    def slow():
        under_way.append("slow")
        assert release.wait(10)
        return Skipped("slow", "")

    def quick(number):
        under_way.append(number)
        if number == 3:
            release.set()
        return Skipped(str(number), str(torch.get_num_threads()))

    loads = [slow, *(partial(quick, number) for number in range(1, 20))]
    found = list(clips.in_order(loads, 2))
    assert [item.name for item in found] == ["slow", *map(str, range(1, 20))]
    assert {item.reason for item in found[1:]} == {"1"}, "readers take one core each"
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads()


def test_no_more_is_read_ahead_than_a_few():
    read = []

    def loads():
        for number in range(100):
            read.append(number)
            yield partial(Skipped, str(number), "")

    items = clips.in_order(loads(), 2)
    assert next(items).name == "0"
    items.close()
    assert len(read) <= 5


def test_what_cannot_be_used_in_a_shard_is_skipped_by_name(tmp_path):
    pytest.importorskip("webdataset")
    mp4 = clip_bytes(tmp_path)
    write_shard(
        tmp_path / "clips.tar",
        {
            "cut.mp4": mp4[: len(mp4) // 2],
            "cut.txt": b"x",
            "short.mp4": clip_bytes(tmp_path, frames=3),
            "short.txt": b"x",
            "still.jpg": b"",
            "still.txt": b"x",
            "mute.mp4": mp4,
            "latin.mp4": mp4,
            "latin.txt": b"caf\xe9",
            "list.mp4": mp4,
            "list.json": b'["caption"]',
            "broken.mp4": mp4,
            "broken.json": b'{"caption',
            "good.mp4": mp4,
            "good.txt": b"x",
        },
    )
    *skipped, good = ShardSource(tmp_path / "clips.tar", **CUT)
    assert good.name == "clips.tar:good"
    expected = {
        "cut": "cannot open clips.tar:cut as a clip",
        "short": "has 3 frames, 4 are needed",
        "still": "has no mp4, webm, gif, webp, only jpg, txt",
        "mute": "has no caption",
        "latin": "has no caption that can be read",
        "list": "has no caption",
        "broken": "has no caption that can be read",
    }
    assert [item.name for item in skipped] == [f"clips.tar:{key}" for key in expected]
    for item, reason in zip(skipped, expected.values(), strict=True):
        assert reason in item.reason


def test_broken_shard_gives_what_comes_before_and_the_next_shards(tmp_path):
    pytest.importorskip("webdataset")
    mp4 = clip_bytes(tmp_path)
    members = {"a.mp4": mp4, "a.txt": b"x", "b.txt": b"y", "b.mp4": bytes(100_000)}
    write_shard(tmp_path / "0.tar", members)
    cut(tmp_path / "0.tar", 0.5)
    (tmp_path / "1.tar").write_text("not a tar\n" * 200)
    write_shard(tmp_path / "2.tar", {"c.mp4": mp4, "c.txt": b"x"})
    first, half, cut_off, no_tar, last = ShardSource(tmp_path, **CUT)
    assert (first.name, last.name) == ("0.tar:a", "2.tar:c")
    assert half.name == "0.tar:b"
    assert (cut_off.name, no_tar.name) == ("0.tar", "1.tar")
    for item in (cut_off, no_tar):
        assert "cut off or broken" in item.reason
        assert "<" not in item.reason


def test_shards_that_are_not_there(tmp_path):
    pytest.importorskip("webdataset")
    with pytest.raises(LivePhotoError, match=r"no \.tar files"):
        ShardSource(tmp_path)
    for shards in (tmp_path / "a.tar", "https://example.org/a.tar", "pipe:echo a.tar", [str(tmp_path / "{0..2}.tar")]):
        with pytest.raises(LivePhotoError, match="does not exist; give local"):
            ShardSource(shards)
    with pytest.raises(LivePhotoError, match="do not close"):
        ShardSource(str(tmp_path / "{0..2.tar"))


def test_without_webdataset_the_extra_is_named(tmp_path):
    # A child without site-packages' webdataset: None in sys.modules makes its import fail as if not installed.
    program = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from livephoto_core.data.shards import ShardSource\n"
        "from livephoto_core.errors import LivePhotoError\n"
        "try: ShardSource('a.tar')\n"
        "except LivePhotoError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install comfyui-livephoto[train]" in done.stdout
