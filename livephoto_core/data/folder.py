"""A folder of clips with a CSV of captions: WebVid's columns, or plain path and caption."""

import csv
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..errors import LivePhotoError
from .clips import ClipSample, Load, Skipped, Source, Window, load_sample

WEBVID_COLUMNS = ("videoid", "name", "page_dir")
PLAIN_COLUMNS = ("path", "caption")
# A caption and the places where its clip may lie, best first.
_Row = tuple[str, tuple[str, ...]]


class FolderSource(Source):
    """Clips of a folder in the order of its CSV.

    The CSV is UTF-8 with a header; further columns are ignored. With WebVid's columns a clip lies at
    `page_dir/videoid.mp4` or, failing that, at `videoid.mp4`, and `name` is its caption; with plain columns `path` is
    relative to the folder and may name any video, animated webp or gif, or folder of pictures.

    Args:
        folder: where the clips lie.
        csv: the CSV file; None: the only one in the folder.
        frames, stride, size, position: the window cut out of every clip, see `clips.pick_frames`.

    Raises:
        LivePhotoError: no such folder, an empty one, no CSV or several, a CSV that is not UTF-8 or not well formed,
            that lacks its columns or that lists nothing; numbers below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        csv: str | Path | None = None,
        frames: int = 16,
        stride: int = 4,
        size: int = 256,
        position: str = "centre",
    ) -> None:
        self.window = Window(frames, stride, size, position)
        self.folder = Path(folder)
        _check_folder(self.folder)
        self.csv = _only_csv(self.folder) if csv is None else Path(csv)
        self._rows = _read_rows(self.csv)

    def __len__(self) -> int:
        """Rows of the CSV, those to be skipped included."""
        return len(self._rows)

    def loads(self, count: int) -> Iterator[Load]:
        """As Source."""
        return (partial(self._load, row) for row in self._rows[count:])

    def _load(self, row: Skipped | _Row) -> ClipSample | Skipped:
        if isinstance(row, Skipped):
            return row
        caption, places = row
        # Unlike Path.exists, False for a name that is too long.
        place = next((place for place in places if os.path.exists(self.folder / place)), None)
        if place is None:
            return Skipped(places[0], f"{' or '.join(places)} does not exist in {self.folder}")
        return load_sample(self.folder / place, self.window, caption, place)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LivePhotoError(f"{folder} is not a folder; give the folder that holds the clips")
    if next(folder.iterdir(), None) is None:
        raise LivePhotoError(f"{folder} is empty; give a folder of clips with a CSV of their captions")


def _only_csv(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    if not found:
        raise LivePhotoError(
            f"{folder} has no CSV; add one with the columns {','.join(PLAIN_COLUMNS)} (or {','.join(WEBVID_COLUMNS)})"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise LivePhotoError(f"{folder} has several CSVs ({names}); name the one to use")
    return found[0]


def _read_rows(path: Path) -> list[Skipped | _Row]:
    if not path.is_file():
        raise LivePhotoError(f"{path} does not exist; give a CSV with the columns {','.join(PLAIN_COLUMNS)}")
    try:
        # utf-8-sig: spreadsheets put a byte order mark first. strict: an unclosed quote would swallow the rest.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            columns = [column.strip() for column in next(reader, [])]
            place_of = _places(columns, path)
            filled = filter(None, reader)
            rows = [_parse(cells, columns, place_of, f"{path.name} line {reader.line_num}") for cells in filled]
    except UnicodeDecodeError as error:
        raise LivePhotoError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise LivePhotoError(
            f"{path} line {reader.line_num} is not well-formed CSV ({error}); close its quotes and double those inside"
        ) from error
    except OSError as error:
        raise LivePhotoError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    if not rows:
        raise LivePhotoError(f"{path} lists no clips; add a row for each clip below the header")
    return rows


def _places(columns: list[str], path: Path) -> Callable[[dict[str, str]], _Row]:
    """The function that finds caption and places in a row, given as a dict by column."""
    if set(WEBVID_COLUMNS) <= set(columns):
        return _webvid_places
    if set(PLAIN_COLUMNS) <= set(columns):
        return _plain_places
    raise LivePhotoError(
        f"{path} has the columns {','.join(columns) or '(none)'}; "
        f"give it {','.join(PLAIN_COLUMNS)} or {','.join(WEBVID_COLUMNS)}"
    )


def _webvid_places(row: dict[str, str]) -> _Row:
    file = f"{row['videoid']}.mp4" if row["videoid"] else ""
    return row["name"], (f"{row['page_dir']}/{file}", file) if file and row["page_dir"] else (file,)


def _plain_places(row: dict[str, str]) -> _Row:
    return row["caption"], (row["path"],)


def _parse(
    cells: list[str], columns: list[str], place_of: Callable[[dict[str, str]], _Row], line: str
) -> Skipped | _Row:
    if len(cells) != len(columns):
        return Skipped(line, f"has {len(cells)} cells, the header {len(columns)}; quote a caption that holds commas")
    caption, places = place_of(dict(zip(columns, map(str.strip, cells), strict=True)))
    if not places[0]:
        return Skipped(line, "names no clip; fill its path in")
    return (caption, places) if caption else Skipped(places[0], f"has no caption ({line}); write one")
