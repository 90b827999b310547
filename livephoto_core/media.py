"""Reading photos and clips into tensors.

Photos, animated webp and gif, and folders of pictures are read by Pillow; everything else by PyAV.
"""

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .errors import LivePhotoError

# Pictures through and through: left to itself, Pillow hands an EPS to Ghostscript and calls any MPEG an image.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATION_FORMATS = ("WEBP", "GIF", "PNG")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FITS = ("crop", "pad", "stretch")
# A folder of pictures and a file without a rate are taken for clips at this rate, that of AnimateDiff's clips.
DEFAULT_FPS = 8.0
# The name of LivePhoto's record in a PNG's text chunks and its namespace in XMP.
RECORD_KEY = "livephoto"
XMP_NAMESPACE = "urn:livephoto"
# What Pillow raises on broken files, apart from opening them; UnidentifiedImageError is an OSError.
PILLOW_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    TypeError,
    ValueError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
# A picture held longer is a broken duration, not a clip.
_MOST_REPEATS = 250
# ffmpeg shows plain text as a video of a terminal.
_TEXT_DEMUXERS = {"tty", "bin", "xbin", "adf", "idf"}


class Clip(NamedTuple):
    """A clip: `frames` [F, 3, H, W], float32, RGB, 0..1, and its rate `fps` in frames a second."""

    frames: Tensor
    fps: float


def read_image(path: str | Path) -> Tensor:
    """Read a photo as [3, H, W], float32, RGB, 0..1, upright by its EXIF orientation, transparency laid over white.

    Raises:
        LivePhotoError: a missing file, a file that is not a picture, or one cut off.
    """
    path = _existing(path)
    if path.is_dir():
        raise LivePhotoError(f"{path} is a folder; give one picture file")
    return _to_tensor(_read_picture(path))


def read_clip(path: str | Path, max_frames: int | None = None, stride: int = 1) -> Clip:
    """Read a clip: a video (PyAV), an animated webp, gif or png (Pillow), or a folder of pictures in natural order.

    Every `stride`-th frame is kept, from the first on, `max_frames` at most, and `fps` is the rate of the kept frames.
    A picture that an animation shows for several frames' time counts as several frames, since encoders merge equal
    ones; a video's frames come as they are stored, however long each is shown. Phone videos come upright. A video cut
    off gives the frames before the cut if there are two or more. A still picture is a clip of one frame.

    Raises:
        LivePhotoError: a missing file, an empty folder, a file without readable frames, frames of different sizes, or a
            `stride` or `max_frames` below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise LivePhotoError(f"max_frames must be 1 or more, got {max_frames}; leave it out to read all frames")
    frames, fps = _open_clip(path, slice(0, None if max_frames is None else max_frames * stride, stride))
    return Clip(_to_tensor(np.stack(list(frames))), fps)


def stream_clip(path: str | Path, stride: int = 1, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """Yield the frames that `read_clip` would return, [3, H, W] each, without holding a long video in memory.

    Of these, every `stride`-th from frame `start` on and before `stop`; what a video has in between is decoded, but not converted.

    Raises:
        LivePhotoError: as `read_clip`, some of it only after the first frames.
    """
    frames, _ = _open_clip(path, slice(start, stop, stride))
    return map(_to_tensor, frames)


def fit_image(image: Tensor, height: int, width: int, fit: str) -> Tensor:
    """Bring a picture, or each frame of a clip, to a size.

    Args:
        image: [3, H, W] or [F, 3, H, W], values 0..1.
        height, width: the size to reach, in pixels.
        fit: "crop" covers the size and cuts out the middle, "pad" fits inside it and fills up with white, "stretch"
            changes the proportions.

    Returns:
        [3, height, width] or [F, 3, height, width], values 0..1, resized bicubically with antialiasing.

    Raises:
        LivePhotoError: an unknown `fit` or a size below 1.
    """
    if fit not in FITS:
        raise LivePhotoError(f"unknown fit {fit!r}; choose one of {', '.join(FITS)}")
    if height < 1 or width < 1:
        raise LivePhotoError(f"cannot fit a picture to {width}x{height}; give a size of 1x1 or more")
    old_height, old_width = image.shape[-2:]
    if fit == "stretch":
        return _resize(image, height, width)
    scales = height / old_height, width / old_width
    scale = max(scales) if fit == "crop" else min(scales)
    limit = max if fit == "crop" else min
    resized = _resize(
        image, limit(height, max(1, round(old_height * scale))), limit(width, max(1, round(old_width * scale)))
    )
    top, left = (height - resized.shape[-2]) // 2, (width - resized.shape[-1]) // 2
    bottom, right = height - resized.shape[-2] - top, width - resized.shape[-1] - left
    # Negative margins cut.
    return pad(resized, (left, right, top, bottom), value=1.0)


def read_record(path: str | Path) -> dict | None:
    """Read the record that `media_write` left in a file: a dict of "frames", "fps", "settings"; None if there is none.

    Raises:
        LivePhotoError: a missing file or one that is neither a picture nor a video.
    """
    path = _existing(path)
    try:
        with Image.open(path, formats=ANIMATION_FORMATS) as image:
            return _picture_record(image)
    except PILLOW_ERRORS:
        with _open_video(path) as container:
            return _parse_record(container.metadata.get("comment"))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    # Unlike Path.exists, False for a name that is too long.
    if not os.path.exists(path):
        raise LivePhotoError(f"{path} does not exist; check the path")
    return path


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(pixels).float() / 255, "... h w c -> ... c h w").contiguous()


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=PHOTO_FORMATS) as image:
            return _upright_rgb(image)
    except PILLOW_ERRORS as error:
        raise LivePhotoError(
            f"cannot read {path} as a picture ({_cause(error)}); give a whole JPEG, PNG, WebP, GIF, BMP or TIFF"
        ) from error


def _upright_rgb(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255.
        grey = (np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _open_clip(path: str | Path, wanted: slice) -> tuple[Iterator[np.ndarray], float]:
    """The wanted frames [H, W, 3], uint8, of one size, and the rate of these frames."""
    if wanted.step < 1:
        raise LivePhotoError(f"stride must be 1 or more, got {wanted.step}; 1 keeps every frame")
    path = _existing(path)
    if path.is_dir():
        frames, fps = _folder_frames(path, wanted), DEFAULT_FPS
    else:
        frames, fps = _animation(path, wanted) or _video(path, wanted)
    return _of_one_size(frames, path), fps / wanted.step


def _of_one_size(frames: Iterator[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    first = None
    for frame in frames:
        first = frame if first is None else first
        yield _same_size(frame, first, path)


def _same_size(frame: np.ndarray, first: np.ndarray, path: Path) -> np.ndarray:
    if frame.shape != first.shape:
        raise LivePhotoError(
            f"{path} has frames of {first.shape[1]}x{first.shape[0]} and of {frame.shape[1]}x{frame.shape[0]} pixels; "
            "bring them to one size"
        )
    return frame


def _folder_frames(folder: Path, wanted: slice) -> Iterator[np.ndarray]:
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."]
    if not pictures:
        kinds = " ".join(PICTURE_SUFFIXES)
        raise LivePhotoError(f"{folder} has no pictures ({kinds}) in it; give a folder of frames or a video")
    return map(_read_picture, sorted(pictures, key=_natural_order)[wanted])


def _natural_order(path: Path) -> list[tuple[int, str]]:
    # frame_2 comes before frame_10.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _animation(path: Path, wanted: slice) -> tuple[Iterator[np.ndarray], float] | None:
    """The wanted frames of a webp, gif or png and the rate of all; None if the file is none of these."""
    try:
        image = Image.open(path, formats=ANIMATION_FORMATS)
    except PILLOW_ERRORS:
        return None
    with image:
        shown = _shown_frames(image, path, wanted.stop)
        record = _picture_record(image) if image.format in ("WEBP", "GIF") else None
    durations = [duration for _, duration in shown]
    fps = record["fps"] if record else _usual_rate(durations)
    frames = [frame for frame, duration in shown for _ in range(_repeats(duration * fps / 1000))]
    if record and len(shown) == 1:
        # A clip that never moves is stored as one picture, in a webp even without its duration.
        frames = frames[:1] * record["frames"]
    return iter(frames[wanted]), fps


def _repeats(frames: float) -> int:
    return min(_MOST_REPEATS, max(1, round(frames)))


def _shown_frames(image: Image.Image, path: Path, stop: int | None) -> list[tuple[np.ndarray, float]]:
    """Pairs of a picture and the milliseconds it is shown; what lies before a cut if that is two pictures or more."""
    shown = []
    try:
        for index in range(getattr(image, "n_frames", 1))[:stop]:
            image.seek(index)
            image.load()
            shown.append((_upright_rgb(image), image.info.get("duration", 0)))
    except PILLOW_ERRORS as error:
        if len(shown) < 2:
            raise LivePhotoError(f"cannot read {path} ({_cause(error)}); the file is cut off or broken") from error
    return shown


def _usual_rate(durations: list[float]) -> float:
    counts = Counter(duration for duration in durations if duration > 0)
    return 1000 / min(counts, key=lambda duration: (-counts[duration], duration)) if counts else DEFAULT_FPS


def _open_video(path: Path):
    import av

    try:
        # Local files only: a playlist must not make ffmpeg fetch anything.
        options = {"protocol_whitelist": "file"}
        container = av.open(str(path), metadata_errors="replace", container_options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise LivePhotoError(
            f"cannot open {path} as a clip ({_cause(error)}); give a whole video, an animated webp or gif, "
            "or a folder of pictures"
        ) from error
    if container.format.name in _TEXT_DEMUXERS or not container.streams.video:
        container.close()
        raise LivePhotoError(f"{path} has no video in it; give a video, an animated webp or gif, or a folder of frames")
    return container


def _video(path: Path, wanted: slice) -> tuple[Iterator[np.ndarray], float]:
    container = _open_video(path)
    rate = container.streams.video[0].average_rate or Fraction(DEFAULT_FPS)
    return _video_frames(container, path, wanted), float(rate)


def _video_frames(container, path: Path, wanted: slice) -> Iterator[np.ndarray]:
    import av

    count = 0
    with container:
        try:
            for frame in islice(container.decode(video=0), wanted.stop):
                if count >= wanted.start and (count - wanted.start) % wanted.step == 0:
                    yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                count += 1
        except av.FFmpegError as error:
            if count < 2:
                raise LivePhotoError(f"cannot read {path} ({_cause(error)}); the video is cut off or broken") from error
    if not count:
        raise LivePhotoError(f"{path} has no frame that can be read; give a whole video")


def _picture_record(image: Image.Image) -> dict | None:
    info = image.info
    if image.format == "GIF":
        return _parse_record(info.get("comment"))
    if image.format == "WEBP":
        return _parse_record(_xmp_record(info.get("xmp")))
    return _parse_record(info.get(RECORD_KEY))


def _xmp_record(xmp: bytes | None) -> str | None:
    if not xmp or XMP_NAMESPACE.encode() not in xmp:
        return None
    try:
        elements = ElementTree.fromstring(xmp).iter()
    except ElementTree.ParseError:
        return None
    return next((e.attrib[key] for e in elements if (key := f"{{{XMP_NAMESPACE}}}settings") in e.attrib), None)


def _parse_record(text: str | bytes | None) -> dict | None:
    # Other programs write comments too: whatever is not a record of ours is none.
    try:
        record = json.loads(text)[RECORD_KEY]
        return {"frames": int(record["frames"]), "fps": float(record["fps"]), "settings": dict(record["settings"])}
    except (KeyError, TypeError, ValueError):
        return None


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    pictures = image.reshape(-1, *image.shape[-3:])
    resized = interpolate(pictures, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).reshape(*image.shape[:-2], height, width)


def _cause(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
