"""Contents of files in a folder: each is there whole, or not at all."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxserve.batches.errors import StoreFull


class Contents:
    """`folder`: made if it is not there. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._folder / name

    def write(self, name: str, pieces: Iterable[bytes], most_bytes: int) -> int:
        """The size of what was written: beside, synced, renamed. Raises StoreFull."""
        partial, size = self._folder / f".{name}", 0
        with full_is_known():
            try:
                with open(partial, "wb") as target:
                    for piece in pieces:
                        size += len(piece)
                        if size > most_bytes:
                            raise StoreFull("the batch store is at its bound (batch_store_bytes): delete files")
                        target.write(piece)
                    target.flush()
                    os.fsync(target.fileno())
                partial.rename(self.path(name))
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            self._sync()
        return size

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> None:
        """Remove what is not known: uploads and outputs that a crash cut short."""
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    def _sync(self) -> None:
        """A rename is on the disk when its folder is."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def full_is_known() -> Iterator[None]:
    """A full disk is StoreFull, whoever says it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise StoreFull(f"the batch store cannot be written ({error}): make room on its disk") from error
        raise
    except OSError as error:
        raise StoreFull(f"the batch store cannot be written ({error.strerror}): make room on its disk") from error
