import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from livephoto_core.errors import LivePhotoError
from livephoto_core.media import fit_image, read_clip, read_image, stream_clip
from livephoto_core.media_write import SIDES, contact_sheet, read_settings, write_clip, write_picture

SUFFIXES = [".mp4", ".webp", ".gif", ".png"]
ANIMATIONS = [".mp4", ".webp", ".gif"]
# A gif has 256 colours for the whole clip.
LEAST_PSNR = {".mp4": 35, ".webp": 35, ".gif": 29}
SETTINGS = {
    "text": "a \"naïve\" <cat> & 'dog' 猫 \\",
    "seed": 3,
    "intensity": [1, 5.5],
    "lora": None,
    "long": "x" * 3000,
}


def moving(frames=6, height=32, width=48):
    """A smooth picture that grows brighter; halved chroma does little to it."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width).expand(height, width)
    return torch.stack([torch.stack([x, y, 1 - x * y]) * (0.6 + 0.4 * f / frames) for f in range(frames)])


def noise(frames=12, height=64, width=64):
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def psnr(a, b):
    return -10 * torch.log10((a - b).square().mean()).item()


# Photos


def test_photo_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image = read_image(tmp_path / "photo.png")
    assert image.dtype == torch.float32
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))


def test_photo_comes_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.new("RGB", (40, 20), "black")
    photo.paste("white", (0, 0, 20, 20))
    photo.save(tmp_path / "phone.jpg", exif=exif)
    image = read_image(tmp_path / "phone.jpg")
    assert image.shape == (3, 40, 20)
    assert image[:, :16].mean() > 0.95
    assert image[:, 24:].mean() < 0.05


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    photo = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    photo.paste((0, 0, 0, 255), (0, 0, 4, 8))
    photo.convert(mode).save(tmp_path / "cut-out.png")
    image = read_image(tmp_path / "cut-out.png")
    assert image[..., :4].max() == 0
    assert image[..., 4:].min() == 1


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[0, 0].tolist() == pytest.approx([0, 128 / 255, 1])


def test_what_is_no_photo(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    cases = {
        "cut.jpg": "truncated",
        "text.png": "give a whole JPEG",
        "empty.png": "give a whole JPEG",
        "none.png": "does not exist",
        "x" * 300: "does not exist",
        ".": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(LivePhotoError, match=message) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(16, 16), (64, 24), (7, 90)])
def test_fit_reaches_the_size(fit, size):
    fitted = fit_image(moving()[0], *size, fit)
    assert fitted.shape == (3, *size)
    assert 0 <= fitted.min() <= fitted.max() <= 1
    assert fit_image(moving(), *size, fit).shape == (6, 3, *size)


def test_fits_keep_what_they_say():
    image = torch.zeros(3, 10, 30)
    image[..., 10:20] = 1
    image[..., 14:16] = 0
    assert torch.equal(fit_image(image, 10, 10, "crop"), image[..., 10:20])
    padded = fit_image(image, 30, 30, "pad")
    assert torch.equal(padded[:, 10:20], image)
    assert padded[:, :10].min() == padded[:, 20:].min() == 1
    assert torch.equal(fit_image(image, 10, 30, "stretch"), image)


def test_unusable_fits():
    with pytest.raises(LivePhotoError, match=r"'squash'.*crop, pad, stretch"):
        fit_image(torch.zeros(3, 8, 8), 8, 8, "squash")
    with pytest.raises(LivePhotoError, match="0x8"):
        fit_image(torch.zeros(3, 8, 8), 8, 0, "crop")


# Clips, written and read back


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_settings_come_back(tmp_path, suffix):
    write_clip(moving(), tmp_path / f"clip{suffix}", settings=SETTINGS)
    assert read_settings(tmp_path / f"clip{suffix}") == SETTINGS
    assert os.listdir(tmp_path) == [f"clip{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_frames_and_settings_give_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        write_clip(noise(), tmp_path / f"{name}{suffix}", settings=SETTINGS)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("fps", [8, 7.5, 30])
def test_frames_come_back(tmp_path, suffix, fps):
    write_clip(moving(), tmp_path / f"clip{suffix}", fps)
    clip = read_clip(tmp_path / f"clip{suffix}")
    assert clip.frames.shape == (6, 3, 32, 48)
    assert clip.fps == pytest.approx(fps)
    assert psnr(clip.frames, moving()) > LEAST_PSNR[suffix]


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_equal_frames_come_back_as_many(tmp_path, suffix):
    write_clip(moving()[:1].repeat(5, 1, 1, 1), tmp_path / f"still{suffix}")
    still = read_clip(tmp_path / f"still{suffix}")
    assert still.frames.shape[0] == 5
    assert still.fps == pytest.approx(8)
    write_clip(moving()[[0, 0, 0, 3, 3, 5, 5]], tmp_path / f"pauses{suffix}", 15)
    pauses = read_clip(tmp_path / f"pauses{suffix}").frames
    assert psnr(pauses, moving()[[0, 0, 0, 3, 3, 5, 5]]) > LEAST_PSNR[suffix]


def test_foreign_animation_with_merged_frames(tmp_path):
    pictures = [Image.new("L", (8, 8), 20 * i) for i in range(4)]
    pictures[0].save(
        tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 100]
    )
    clip = read_clip(tmp_path / "clip.gif")
    assert (clip.frames[:, 0, 0, 0] * 255).round().tolist() == [0, 20, 20, 20, 40, 60]
    assert clip.fps == pytest.approx(10)
    with pytest.raises(LivePhotoError, match="holds no LivePhoto settings"):
        read_settings(tmp_path / "clip.gif")


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_stride_and_maximum(tmp_path, suffix):
    write_clip(moving(8), tmp_path / f"clip{suffix}")
    every = read_clip(tmp_path / f"clip{suffix}").frames
    some = read_clip(tmp_path / f"clip{suffix}", max_frames=3, stride=2)
    assert torch.equal(some.frames, every[0:6:2])
    assert some.fps == pytest.approx(4)
    assert torch.equal(torch.stack(list(stream_clip(tmp_path / f"clip{suffix}", 3))), every[::3])
    assert torch.equal(torch.stack(list(stream_clip(tmp_path / f"clip{suffix}", 2, 1, 6))), every[1:6:2])
    assert not list(stream_clip(tmp_path / f"clip{suffix}", 1, 8)), "there are no more"
    for arguments in ({"stride": 0}, {"max_frames": 0}):
        with pytest.raises(LivePhotoError, match="must be 1 or more, got 0"):
            read_clip(tmp_path / f"clip{suffix}", **arguments)


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("size", [(31, 47), (1, 1), (32, 47)])
def test_odd_sizes(tmp_path, suffix, size):
    write_clip(moving(3, *size), tmp_path / f"clip{suffix}")
    height, width = read_clip(tmp_path / f"clip{suffix}").frames.shape[2:]
    even = suffix == ".mp4"
    assert (height, width) == tuple(side + side % 2 if even else side for side in size)


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_one_frame(tmp_path, suffix):
    write_clip(moving(1), tmp_path / f"clip{suffix}")
    assert read_clip(tmp_path / f"clip{suffix}").frames.shape == (1, 3, 32, 48)


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_phone_video_comes_upright(tmp_path, degrees):
    import av

    picture = torch.zeros(3, 32, 48)
    picture[:, :16, :24] = 1
    pixels = (picture.permute(1, 2, 0) * 255).byte().numpy()
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    frame = read_clip(tmp_path / "phone.mp4").frames[0]
    assert psnr(frame, torch.rot90(picture, degrees // 90, (1, 2))) > 25


def test_folder_of_pictures_in_natural_order(tmp_path):
    for index in (0, 2, 10):
        Image.new("L", (8, 8), index).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = read_clip(tmp_path)
    assert (clip.frames[:, 0, 0, 0] * 255).round().tolist() == [0, 2, 10]
    assert clip.fps == 8


def test_folders_that_are_no_clip(tmp_path):
    with pytest.raises(LivePhotoError, match="has no pictures"):
        read_clip(tmp_path)
    for index, side in enumerate((8, 9)):
        Image.new("L", (side, 8)).save(tmp_path / f"{index}.png")
    with pytest.raises(LivePhotoError, match="8x8 and of 9x8"):
        read_clip(tmp_path)
    (tmp_path / "1.png").write_text("not a picture")
    with pytest.raises(LivePhotoError, match=r"1\.png as a picture"):
        read_clip(tmp_path)


def write_streamable(path):
    """A video that can be read from its beginning on, unlike an mp4, whose index lies at its end."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "0", "tune": "zerolatency"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in noise():
            pixels = (frame.permute(1, 2, 0) * 255).byte().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def test_video_cut_in_the_middle_gives_the_frames_before(tmp_path):
    write_streamable(tmp_path / "whole.mkv")
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    frames = read_clip(tmp_path / "whole.mkv").frames
    cut = read_clip(tmp_path / "cut.mkv").frames
    assert 2 <= len(cut) < len(frames) == 12
    assert torch.equal(cut[:2], frames[:2])


@pytest.mark.parametrize("suffix", [".mkv", *ANIMATIONS])
def test_clip_cut_at_its_start(tmp_path, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".mkv":
        write_streamable(whole)
    else:
        write_clip(noise(), whole)
    for length in (0, 20, 900):
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(LivePhotoError, match="cut") as error:
            read_clip(cut)
        assert str(cut) in str(error.value)
        assert "\n" not in str(error.value)


def test_cut_mp4_and_webp_cannot_be_opened(tmp_path):
    for suffix in (".mp4", ".webp"):
        write_clip(noise(), tmp_path / f"cut{suffix}")
        whole = (tmp_path / f"cut{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) * 6 // 10])
        with pytest.raises(LivePhotoError, match=rf"cannot .*cut\{suffix}"):
            read_clip(tmp_path / f"cut{suffix}")


def test_cut_gif_gives_the_frames_before(tmp_path):
    write_clip(noise(), tmp_path / "cut.gif")
    whole = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    assert 2 <= len(read_clip(tmp_path / "cut.gif").frames) < 12


@pytest.mark.parametrize("name", ["text.mp4", "text.txt", "list.m3u8", "none.mp4"])
def test_what_is_no_clip(tmp_path, name):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "text.txt").write_text("not a video\n" * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(LivePhotoError) as error:
        read_clip(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_sound_without_pictures(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    with pytest.raises(LivePhotoError, match="has no video in it"):
        read_clip(tmp_path / "sound.wav")


# What cannot be written


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.jpg"])
def test_unknown_suffix_lists_the_four(tmp_path, name):
    with pytest.raises(LivePhotoError, match=r"\.mp4, \.webp, \.gif, \.png"):
        write_clip(moving(), tmp_path / name)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(3, 8, 8), r"got \[3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"got \[0, 3, 8, 8\]"),
        (torch.zeros(2, 4, 8, 8), r"got \[2, 4, 8, 8\]"),
        (torch.full((2, 3, 8, 8), float("nan")), "nan or infinity"),
    ],
)
def test_unusable_frames(tmp_path, frames, message):
    with pytest.raises(LivePhotoError, match=message):
        write_clip(frames, tmp_path / "clip.webp")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_unusable_rate(tmp_path, fps):
    with pytest.raises(LivePhotoError, match="frame rate"):
        write_clip(moving(), tmp_path / "clip.webp", fps)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unwritable_place(tmp_path, suffix):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(LivePhotoError, match="cannot write"):
        write_clip(moving(), tmp_path / "file.txt" / f"clip{suffix}")


FULL_DISK = """
import resource, signal, sys
import torch
from livephoto_core.errors import LivePhotoError
from livephoto_core.media_write import write_clip
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for path in sys.argv[1:]:
    try:
        write_clip(torch.rand(4, 3, 64, 64), path)
    except LivePhotoError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits are a thing of POSIX")
def test_full_disk_leaves_no_half_file(tmp_path):
    targets = [str(tmp_path / f"clip{suffix}") for suffix in SUFFIXES]
    run = subprocess.run([sys.executable, "-c", FULL_DISK, *targets], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"cannot write {target}" for target in targets]
    assert not os.listdir(tmp_path)


# Contact sheets


def test_sheet_shows_eight_frames_from_the_first_to_the_last():
    row = (torch.arange(16) / 15)[:, None, None, None].expand(16, 3, 128, 128)
    sheet = contact_sheet([row], [""])
    assert sheet.shape == (3, 4 + 132, 4 + 8 * 132)
    shown = [(sheet[0, 60, 4 + 132 * i + 60] * 15).round().item() for i in range(8)]
    assert shown == [0, 2, 4, 6, 9, 11, 13, 15]


def test_sheet_enlarges_small_frames_without_blur():
    frames = noise(2, 32, 48)
    sheet = contact_sheet([frames], [""])
    assert sheet.shape == (3, 4 + 132, 4 + 2 * 196)
    frame = sheet[:, 4:132, 4:196][:, 2::4, 2::4]
    assert torch.equal((frame * 255).round(), (frames[0] * 255).round())


def test_sheet_labels_its_rows():
    rows = [torch.zeros(3, 3, 64, 64), torch.zeros(2, 3, 64, 64)]
    sheet = contact_sheet(rows, ["level 1", "level 10 猫"])
    label_width = sheet.shape[2] - (4 + 3 * 132)
    assert label_width > 30
    for top in (4, 136):
        assert sheet[:, top : top + 128, : label_width - 4].min() < 0.5
    assert sheet[:, 136:264, -130:].min() == 1


def test_sheet_with_settings(tmp_path):
    sheet = contact_sheet([moving(), moving()], ["level 1", "level 5"])
    write_picture(sheet, tmp_path / "sheet.png", SETTINGS)
    assert read_settings(tmp_path / "sheet.png") == SETTINGS
    assert torch.allclose(read_image(tmp_path / "sheet.png"), sheet, atol=1e-6)
    with pytest.raises(LivePhotoError, match=r"a contact sheet is a \.png"):
        write_picture(sheet, tmp_path / "sheet.gif", SETTINGS)


def test_unusable_sheets():
    with pytest.raises(LivePhotoError, match="0 rows"):
        contact_sheet([], [])
    with pytest.raises(LivePhotoError, match="1 rows and 2 labels"):
        contact_sheet([moving()], ["a", "b"])
    with pytest.raises(LivePhotoError, match="48x32, 32x32"):
        contact_sheet([moving(), moving(6, 32, 32)], ["a", "b"])


@pytest.mark.parametrize("keep", [0.2, 0.4, 0.55, 0.7, 0.85, 0.97])
def test_a_cut_gif_gives_its_whole_frames_or_one_line(tmp_path, keep):
    whole = tmp_path / "whole.gif"
    write_clip(torch.rand(6, 3, 24, 24), whole, settings={})
    cut = tmp_path / "cut.gif"
    cut.write_bytes(whole.read_bytes()[: int(keep * whole.stat().st_size)])
    try:
        assert len(read_clip(cut).frames) >= 2
    except LivePhotoError as error:
        assert "cut.gif" in str(error)


def test_a_broken_duration_does_not_fill_the_memory(tmp_path):
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / "long.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 8_000_000, 100], lossless=True)
    assert len(read_clip(path).frames) < 500


def test_frames_larger_than_a_format_holds(tmp_path):
    for name, side in SIDES.items():
        with pytest.raises(LivePhotoError, match=rf"would be {side + 2}x16 pixels, a {name} holds {side} a side: write a \.png"):
            write_clip(torch.zeros(1, 3, 16, side + 2), tmp_path / f"wide{name}")
        assert not list(tmp_path.iterdir())
    for name, side in SIDES.items():
        write_clip(torch.zeros(1, 3, 16, side), tmp_path / f"wide{name}")
