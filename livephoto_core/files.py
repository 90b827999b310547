"""Writing a file or a folder whole or not at all."""

import errno
import glob
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import LivePhotoError

_FIXES = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EFBIG: "write to a place that allows larger files",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "give a path whose parent is a folder",
    errno.ENAMETOOLONG: "give a shorter file name",
}


def behind_link(path: str | os.PathLike) -> Path:
    """The file that a link leads to, there or not; any other path as it is. What is written goes there, and the link stays."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix, that becomes `path` when the block succeeds.

    Where `path` is a link, this is so of the file that it leads to.

    An empty file lies at the temporary path when the block starts, so that an unwritable folder is reported before the
    work and not after it. If the block raises, the temporary file is removed and what was at `path` stays as it was.

    Raises:
        LivePhotoError: `path` is something other than a regular file, or an OSError came up while writing (no such
            folder, no permission, a full disk).
    """
    path, target = Path(path), behind_link(path)
    temporary = target.parent / f".{target.stem[:40]}.{secrets.token_hex(4)}{target.suffix}"
    try:
        _refuse_special_file(path)
        # Not tempfile: it makes files that only their owner can read.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors puts a file there that only its owner can read
        temporary.chmod(mode)
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise LivePhotoError(_write_message(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path` that becomes `path`, in place of what was there, when the block succeeds.

    Raises:
        LivePhotoError: an OSError came up while writing.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _put_in_place(temporary, path)
    except OSError as error:
        raise LivePhotoError(_write_message(path, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    """Put a folder at `path`; what was there goes when the new one is in its place, and comes back if it cannot be."""
    old = new.with_name(f"{new.name}.old")
    if not path.exists():
        os.replace(new, path)
        return
    os.rename(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_parts(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder inside `folder`; when the block succeeds, what lies in it moves up, in place of what has its names.

    Files move last: where one is, the folders written with it are. If the block raises, `folder` keeps what it had.

    Raises:
        LivePhotoError: an OSError came up while writing.
    """
    folder = Path(folder)
    temporary = folder / f".{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for part in sorted(temporary.iterdir(), key=Path.is_file):
            target = folder / part.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(part, target)
    except OSError as error:
        raise LivePhotoError(_write_message(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove what writers of the file `path` and of parts of its folder left when they were killed; none may be at work.

    Raises:
        LivePhotoError: an OSError came up while removing.
    """
    path, target = Path(path), behind_link(path)
    marks = "[0-9a-f]" * 8
    try:
        for file in target.parent.glob(f".{glob.escape(target.stem[:40])}.{marks}{glob.escape(target.suffix)}"):
            file.unlink()
        for folder in filter(Path.is_dir, path.parent.glob(f".{marks}")):
            shutil.rmtree(folder)
    except OSError as error:
        raise LivePhotoError(f"cannot remove what a killed run left in {path.parent} ({error}): remove it by hand") from error


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder where there is none, and see that files can be written in it, before the long work.

    Raises:
        LivePhotoError: they cannot.
    """
    with atomic_parts(folder):
        pass


def check_replaceable(folder: str | os.PathLike) -> None:
    """See that `atomic_folder` can put a folder there, before the long work; leaves nothing behind.

    Raises:
        LivePhotoError: it cannot.
    """
    folder = Path(folder)
    try:
        real = folder.resolve()
        if real in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(real):
            raise LivePhotoError(f"cannot replace {folder}, the current folder, one around it, or a disk: name a new folder in it")
        # a name that is too long is found here
        parent = next(parent for parent in (real, *real.parents) if parent.exists() and parent != real)
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise LivePhotoError(_write_message(folder, error)) from error


def _refuse_special_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    # A rename would replace a device such as /dev/null by a plain file.
    if not stat.S_ISREG(mode):
        raise LivePhotoError(f"cannot write {path}: it is not a regular file; give the path of a file")


def _flush_to_disk(path: Path) -> None:
    # Some file systems tell of a full disk only here.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _write_message(path: Path, error: OSError) -> str:
    cause = error.strerror or str(error) or type(error).__name__
    return f"cannot write {path}: {cause}; {_FIXES.get(error.errno, 'choose a folder you can write to')}"
