"""webdataset shards: local tar files whose members are clips and their captions."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from ..errors import LivePhotoError
from .clips import ClipSample, Load, Skipped, Source, Window, load_sample

CLIP_MEMBERS = ("mp4", "webm", "gif", "webp")


class ShardSource(Source):
    """Clips of webdataset shards, shard by shard, in the order in which they were packed.

    A sample is a clip (`KEY.mp4`, `.webm`, `.gif` or `.webp`) and its caption (`KEY.txt`, or "caption" in `KEY.json`).
    Samples are counted only by reading them all, so there is no length.

    Args:
        shards: a folder of .tar files, the path of one, a pattern such as `clips-{000..009}.tar`, or a list of paths
            and patterns. Nothing is fetched: addresses are refused.
        frames, stride, size, position: the window cut out of every clip, see `clips.pick_frames`.

    Raises:
        LivePhotoError: webdataset is not installed, a shard does not exist, or a folder has none; numbers below 1.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        frames: int = 16,
        stride: int = 4,
        size: int = 256,
        position: str = "centre",
    ) -> None:
        _webdataset()
        self.window = Window(frames, stride, size, position)
        given = [shards] if isinstance(shards, str | Path) else shards
        self.shards = [path for item in given for path in _expand(item)]

    def loads(self, count: int) -> Iterator[Load]:
        """As Source; the first `count` samples are read past in their shards."""
        return islice(self._all_loads(), count, None)

    def _all_loads(self) -> Iterator[Load]:
        for shard in self.shards:
            errors: list[Exception] = []
            for record in _records(shard, errors):
                yield partial(_load, record, f"{shard.name}:{record['__key__']}", self.window)
            if errors:
                # webdataset adds the stream it read from.
                cause = str(errors[0].args[0]).split(" @ ")[0]
                yield partial(Skipped, shard.name, f"the shard is cut off or broken from here on ({cause}); pack it again")


def _webdataset():
    try:
        import webdataset
    except ImportError as error:
        raise LivePhotoError(
            "shards need the package webdataset, which is not installed; run: pip install comfyui-livephoto[train]"
        ) from error
    return webdataset


def _expand(item: str | Path) -> list[Path]:
    from braceexpand import UnbalancedBracesError, braceexpand

    if Path(item).is_dir():
        found = sorted(Path(item).glob("*.tar"))
        if not found:
            raise LivePhotoError(f"{item} has no .tar files in it; give a folder of webdataset shards")
        return found
    try:
        paths = [Path(item)] if Path(item).is_file() else [Path(text) for text in braceexpand(str(item))]
    except UnbalancedBracesError as error:
        raise LivePhotoError(f"the braces in {item} do not close; write a pattern as clips-{{000..009}}.tar") from error
    for path in paths:
        if not path.is_file():
            raise LivePhotoError(f"the shard {path} does not exist; give local .tar files, addresses are not fetched")
    return paths


def _records(shard: Path, errors: list[Exception]) -> Iterator[dict]:
    """The samples of a shard as dicts of bytes by suffix, up to where it breaks, if it does."""
    tariterators = _webdataset().tariterators

    def stop(error: Exception) -> bool:
        errors.append(error)
        return False

    # webdataset's own opener would run `pipe:` commands and fetch addresses.
    with open(shard, "rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(shard), "stream": stream}], handler=stop)
        yield from tariterators.group_by_keys(files, handler=stop)


def _load(record: dict, name: str, window: Window) -> ClipSample | Skipped:
    suffix = next((suffix for suffix in CLIP_MEMBERS if suffix in record), None)
    if suffix is None:
        members = ", ".join(key for key in record if not key.startswith("__"))
        return Skipped(name, f"has no {', '.join(CLIP_MEMBERS)}, only {members}")
    try:
        caption = _caption(record)
    except ValueError as error:
        return Skipped(name, f"has no caption that can be read ({error})")
    if not caption:
        return Skipped(name, "has no caption; add a txt, or a json with a caption")
    # The readers of clips take paths.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{suffix}")
        path.write_bytes(record[suffix])
        return load_sample(path, window, caption, name)


def _caption(record: dict) -> str:
    if "txt" in record:
        return record["txt"].decode("utf-8-sig").strip()
    fields = json.loads(record.get("json", b"{}"))
    caption = fields.get("caption") if isinstance(fields, dict) else None
    return caption.strip() if isinstance(caption, str) else ""
