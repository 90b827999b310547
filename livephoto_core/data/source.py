"""Which source of clips a path stands for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import LivePhotoError
from ..media import ANIMATION_FORMATS
from .clips import Load, Source, Window, load_sample
from .folder import FolderSource
from .shards import ShardSource

CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", *(f".{kind.lower()}" for kind in ANIMATION_FORMATS))


class PlainFolder(Source):
    """Clips of a folder without captions, in the order of their names; a folder of pictures in it is a clip too.

    Raises:
        LivePhotoError: no clips in the folder.
    """

    def __init__(self, folder: Path, window: Window):
        self.folder, self.window = folder, window
        self.paths = sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in CLIP_SUFFIXES)
        if not self.paths:
            raise LivePhotoError(f"{folder} holds no clips: give a folder of videos, animated webp or gif, or folders of pictures")

    def __len__(self) -> int:
        return len(self.paths)

    def loads(self, count: int) -> Iterator[Load]:
        """As Source."""
        return (partial(load_sample, path, self.window, "", path.name) for path in self.paths[count:])


def open_source(
    data: str | Path, window: Window, kind: str | None = None, csv: str | Path | None = None
) -> Source:
    """The clips at a path.

    Args:
        data: a folder of clips, a CSV beside its clips, or webdataset shards (a folder, a file or a pattern).
        window: what is cut out of every clip.
        kind: "folder" (clips and a CSV), "webdataset", or "plain" (a folder of clips without captions); None looks which it is.
        csv: of a "folder"; None: the only one in it.

    Raises:
        LivePhotoError: nothing there, or nothing that is a clip.
    """
    data = Path(data)
    cut = {"frames": window.frames, "stride": window.stride, "size": window.size, "position": window.position}
    if kind is None and data.suffix.lower() == ".csv" and data.is_file():
        return FolderSource(data.parent, data, **cut)
    kind = kind or kind_of(data)
    if kind == "plain":
        return PlainFolder(data, window)
    return ShardSource(data, **cut) if kind == "webdataset" else FolderSource(data, csv, **cut)


def kind_of(data: Path) -> str:
    """"folder", "webdataset" or "plain", as `open_source` takes it, by what lies at a path.

    Raises:
        LivePhotoError: neither a folder nor shards.
    """
    if data.is_dir():
        return "folder" if any(data.glob("*.csv")) else "webdataset" if any(data.glob("*.tar")) else "plain"
    if ".tar" in data.name:
        return "webdataset"
    raise LivePhotoError(f"{data} is no folder of clips: give a folder, a CSV or .tar shards")
