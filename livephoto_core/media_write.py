"""Writing clips and contact sheets, with the settings that made them in the file's metadata.

The same frames and settings give the same bytes: no file holds a time or a date, and x264 runs in one thread.
"""

import io
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import LivePhotoError
from .files import atomic_path
from .media import RECORD_KEY, XMP_NAMESPACE, read_record

CLIP_SUFFIXES = (".mp4", ".webp", ".gif", ".png")
# the longest side that a format holds
SIDES = {".webp": 16383, ".mp4": 16384, ".gif": 65535}
SHEET_FRAMES = 8
# Below this side length a frame of a sheet is enlarged by a whole factor.
_SHEET_SIDE = 128
_SHEET_GAP = 4
_LABEL_SIZE = 14


def write_clip(frames: Tensor, path: str | Path, fps: float = 8.0, settings: dict | None = None) -> None:
    """Write a clip in the format that the suffix of `path` names: .mp4 (H.264), .webp, .gif, or .png (a contact sheet).

    An mp4 of odd sides gets one more row or column, a copy of the last, as H.264 in 4:2:0 needs even ones. A gif keeps
    time in steps of 10 ms, exact on the average.

    Args:
        frames: [F, 3, H, W], values 0..1 (others are clipped), F at least 1.
        path: where to write; replaced only when the whole file is written.
        fps: frames a second.
        settings: a dict that JSON can hold, for `read_settings`.

    Raises:
        LivePhotoError: an unknown suffix, frames of a wrong shape, too large for the format or with nan, a rate that is not
            above 0, or a file that cannot be written.
    """
    path = Path(path)
    check_clip_suffix(path)
    if not (math.isfinite(fps) and fps > 0):
        raise LivePhotoError(f"the frame rate must be a number above 0, got {fps}; 8 is the default")
    pixels = _to_pixels(frames)
    if path.suffix.lower() in SIDES:
        check_sides(path, *pixels.shape[1:3])
    record = _record(len(pixels), fps, settings)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode(pixels, path.suffix.lower(), fps, record))


def write_picture(image: Tensor, path: str | Path, settings: dict | None = None) -> None:
    """Write one picture [3, H, W], values 0..1, such as a contact sheet of several clips, as a PNG with its settings.

    Raises:
        LivePhotoError: a suffix other than .png, a picture of a wrong shape or with nan, or a file that cannot be
            written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise LivePhotoError(f"a contact sheet is a .png file, got {path.name!r}; end the name in .png")
    pixels = _to_pixels(image[None])[0]
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode_png(pixels, _record(1, 1.0, settings)))


def check_clip_suffix(path: str | Path) -> None:
    """Raise LivePhotoError unless `write_clip` knows the suffix of `path`; call it before long work."""
    path = Path(path)
    if path.suffix.lower() not in CLIP_SUFFIXES:
        raise LivePhotoError(f"cannot write a clip as {path.name!r}; end the name in one of {', '.join(CLIP_SUFFIXES)}")


def check_sides(path: str | Path, height: int, width: int) -> None:
    """Refuse frames that are larger than the format of a clip can hold.

    Raises:
        LivePhotoError: names the size and the most.
    """
    suffix = Path(path).suffix.lower()
    if max(height, width) > SIDES[suffix]:
        raise LivePhotoError(
            f"{path} would be {width}x{height} pixels, a {suffix} holds {SIDES[suffix]} a side: write a .png, or fewer or smaller "
            "clips side by side"
        )


def read_settings(path: str | Path) -> dict:
    """Read the settings that `write_clip` or `write_picture` stored in a file.

    Raises:
        LivePhotoError: a missing or unreadable file, or one without settings.
    """
    record = read_record(path)
    if record is None:
        raise LivePhotoError(f"{path} holds no LivePhoto settings; give a file as livephoto wrote it")
    return record["settings"]


def contact_sheet(rows: Sequence[Tensor], labels: Sequence[str]) -> Tensor:
    """Lay clips out as one picture: a row a clip, its label at the left, white between.

    A row shows at most eight frames, evenly picked from the first to the last. Frames with a side below 128 pixels are
    enlarged by a whole factor, pixel by pixel.

    Args:
        rows: clips [F, 3, H, W], values 0..1; F may differ, H and W not.
        labels: a short text a row; all empty: no column for them.

    Returns:
        [3, height, width], values 0..1.

    Raises:
        LivePhotoError: no rows, not as many labels as rows, or frames of different sizes.
    """
    if not rows or len(rows) != len(labels):
        raise LivePhotoError(f"a sheet needs one label for each row, got {len(rows)} rows and {len(labels)} labels")
    if len({row.shape[1:] for row in rows}) > 1:
        sizes = ", ".join(f"{row.shape[-1]}x{row.shape[-2]}" for row in rows)
        raise LivePhotoError(f"the rows of a sheet have frames of different sizes ({sizes}); bring them to one size")
    pixels = [_to_pixels(_pick(row)) for row in rows]
    height, width = pixels[0].shape[1:3]
    factor = max(1, math.ceil(_SHEET_SIDE / min(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(_LABEL_SIZE)
    label_width = math.ceil(max(font.getlength(label) for label in labels))
    left = _SHEET_GAP + (label_width + _SHEET_GAP if label_width else 0)
    columns = max(len(row) for row in pixels)
    sheet = Image.new(
        "RGB", (left + columns * (width + _SHEET_GAP), _SHEET_GAP + len(rows) * (height + _SHEET_GAP)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for y, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        top = _SHEET_GAP + y * (height + _SHEET_GAP)
        draw.text((_SHEET_GAP, top + height // 2), label, fill="black", font=font, anchor="lm")
        for x, frame in enumerate(row):
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + x * (width + _SHEET_GAP), top))
    return rearrange(torch.from_numpy(np.array(sheet)).float() / 255, "h w c -> c h w").contiguous()


def _pick(frames: Tensor) -> Tensor:
    return frames[torch.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().long()]


def _to_pixels(frames: Tensor) -> np.ndarray:
    """[F, 3, H, W], 0..1, as uint8 [F, H, W, 3]."""
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise LivePhotoError(f"a clip to write is [F, 3, H, W] with one frame or more, got {list(frames.shape)}")
    if not torch.isfinite(frames).all():
        raise LivePhotoError("the frames to write hold nan or infinity; sample again in float32 or with other settings")
    pixels = (frames.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return np.ascontiguousarray(rearrange(pixels, "f c h w -> f h w c").numpy())


def _record(frames: int, fps: float, settings: dict | None) -> str:
    # Readers need frames and fps too: webp and gif merge equal frames. ASCII alone survives every container.
    return json.dumps({RECORD_KEY: {"frames": frames, "fps": fps, "settings": settings or {}}})


def _encode(pixels: np.ndarray, suffix: str, fps: float, record: str) -> bytes:
    if suffix == ".mp4":
        return _encode_mp4(pixels, fps, record)
    if suffix == ".webp":
        return _encode_webp(pixels, fps, record)
    if suffix == ".gif":
        return _encode_gif(pixels, fps, record)
    frames = rearrange(torch.from_numpy(pixels).float() / 255, "f h w c -> f c h w")
    sheet = contact_sheet([frames], [""])
    return _encode_png(_to_pixels(sheet[None])[0], record)


def _encode_mp4(pixels: np.ndarray, fps: float, record: str) -> bytes:
    import av

    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    if "libx264" not in av.codecs_available:
        raise LivePhotoError("this PyAV has no libx264, so it cannot write .mp4; install av from PyPI or write .webp")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = record
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "16", "preset": "medium"}
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _encode_webp(pixels: np.ndarray, fps: float, record: str) -> bytes:
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:livephoto="{XMP_NAMESPACE}" livephoto:settings={quoteattr(record)}/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    pictures = [Image.fromarray(picture) for picture in pixels]
    return _save_animation(pictures, "WEBP", _durations(len(pictures), fps, 1), quality=90, method=4, xmp=xmp.encode())


def _encode_gif(pixels: np.ndarray, fps: float, record: str) -> bytes:
    # One palette for the clip and no dithering: what stands still must not flicker.
    tall = Image.fromarray(rearrange(pixels, "f h w c -> (f h) w c"))
    palette = tall.quantize(256, kmeans=1, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pixels]
    return _save_animation(pictures, "GIF", _durations(len(pictures), fps, 10), comment=record.encode())


def _save_animation(pictures: list[Image.Image], format: str, durations: list[int], **options) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)
    return buffer.getvalue()


def _encode_png(pixels: np.ndarray, record: str) -> bytes:
    info = PngInfo()
    info.add_text(RECORD_KEY, record)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _durations(frames: int, fps: float, step: int) -> list[int]:
    """Milliseconds for each frame, whole multiples of `step` that add up to the true time."""
    ends = [step * round(1000 * (index + 1) / fps / step) for index in range(frames)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
