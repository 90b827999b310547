import os
import stat
import subprocess
import sys

import pytest

from livephoto_core.errors import LivePhotoError
from livephoto_core.files import atomic_folder, atomic_parts, atomic_path, check_replaceable, remove_leftovers


def test_success_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "clip.webp"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".webp"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["clip.webp"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, LivePhotoError])
def test_error_in_the_block_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "clip.webp"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["clip.webp"]


KILLED = """
import os, signal, sys
from pathlib import Path
from livephoto_core.files import atomic_parts, atomic_path

folder = Path(sys.argv[1])
with atomic_path(folder / "state.pt") as file, atomic_parts(folder) as parts:
    file.write_text("half")
    (parts / "adapter").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a kill that no process can catch")
def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    kept = {"state.pt", ".state.notes.pt", ".git", "log"}
    for name in kept:
        (tmp_path / name).touch()
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path]).returncode == -9
    assert len(os.listdir(tmp_path)) == 6
    remove_leftovers(tmp_path / "state.pt")
    assert set(os.listdir(tmp_path)) == kept


@pytest.mark.skipif(os.name != "posix", reason="the umask is a thing of POSIX")
def test_new_file_has_the_permissions_of_any_new_file(tmp_path):
    with atomic_path(tmp_path / "new.bin") as temporary:
        temporary.write_bytes(b"x")
    (tmp_path / "plain.bin").write_bytes(b"x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new.bin", "plain.bin")}
    assert len(modes) == 1


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    begun = []
    with (
        pytest.raises(LivePhotoError, match=r"cannot write .*out\.mp4.*parent is a folder"),
        atomic_path(tmp_path / "file.txt" / "out.mp4") as temporary,
    ):
        begun.append(temporary)
    assert not begun, "an unwritable place must be reported before the work"


def test_missing_folder(tmp_path):
    with pytest.raises(LivePhotoError, match="create the folder first"), atomic_path(tmp_path / "none" / "out.mp4"):
        pass


def test_a_folder_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    target = tmp_path / "report"
    for text in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / f"{text}.txt").write_text(text)
    assert os.listdir(target) == ["new.txt"] and os.listdir(tmp_path) == ["report"]
    # the current folder cannot be replaced by its own name
    monkeypatch.chdir(target)
    with pytest.raises(LivePhotoError), atomic_folder(".") as temporary:
        (temporary / "other.txt").write_text("other")
    assert (target / "new.txt").read_text() == "new" and os.listdir(target) == ["new.txt"]


@pytest.mark.parametrize("folder", [".", "..", "x" * 300, "file.txt/out"])
def test_a_folder_that_cannot_be_replaced_is_told_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / "file.txt").touch()
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside" if folder == ".." else tmp_path)
    with pytest.raises(LivePhotoError):
        check_replaceable(folder)
    check_replaceable("new/and/newer")
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "inside"]


@pytest.mark.parametrize("target", ["/dev/null", "."])
def test_devices_and_folders_are_refused(target):
    with pytest.raises(LivePhotoError, match="not a regular file"), atomic_path(target):
        pass


def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path):
    (tmp_path / "run").mkdir()
    file, link = tmp_path / "run" / "a.bin", tmp_path / "link.bin"
    link.symlink_to(file)
    for text in ("first", "second"):
        with atomic_path(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink() and file.read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.bin", "link.bin", "run"]


def test_name_too_long(tmp_path):
    with pytest.raises(LivePhotoError, match="shorter file name"), atomic_path(tmp_path / ("x" * 300 + ".gif")):
        pass


def fill(folder, text):
    (folder / "unet").mkdir()
    (folder / "unet" / f"{text}.txt").write_text(text)
    (folder / "adapter.bin").write_text(text)


def test_parts_replace_their_namesakes_together_and_leave_the_rest(tmp_path):
    out = tmp_path / "out"
    (out / "log").mkdir(parents=True)
    fill(out, "old")
    with atomic_parts(out) as parts:
        fill(parts, "new")
        assert (out / "adapter.bin").read_text() == "old"
    assert sorted(os.listdir(out)) == ["adapter.bin", "log", "unet"]
    assert os.listdir(out / "unet") == ["new.txt"]
    assert (out / "adapter.bin").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_parts_of_a_block_that_raises_do_not_appear(tmp_path, error):
    fill(tmp_path, "old")
    with pytest.raises(LivePhotoError if error is OSError else error), atomic_parts(tmp_path) as parts:
        fill(parts, "new")
        raise error("stop")
    assert sorted(os.listdir(tmp_path)) == ["adapter.bin", "unet"]
    assert os.listdir(tmp_path / "unet") == ["old.txt"]
    assert (tmp_path / "adapter.bin").read_text() == "old"


FULL_DISK = """
import resource, signal, sys
from livephoto_core.errors import LivePhotoError
from livephoto_core.files import atomic_path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes(100_000))
except LivePhotoError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits are a thing of POSIX")
def test_full_disk_leaves_the_old_file(tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, target], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"cannot write {target}: ")
    assert run.stdout.count("\n") == 1
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == [target.name]
