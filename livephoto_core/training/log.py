"""A run's tensorboard log; a disk that takes no more of it ends the run in one line, as one that takes no state does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LivePhotoError


class TrainingLog:
    """Scalars by step in `folder`; with `purge_step` set, those logged from that step on no longer count.

    Raises:
        LivePhotoError: from every method, where the log cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with self._kept():
            self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, step: int, values: dict[str, float]) -> None:
        with self._kept():
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._kept():
            self.writer.close()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LivePhotoError(
                f"cannot write the log in {self.folder} ({error.strerror or error}): free some space or give another out folder"
            ) from error
