"""Blocks in files: one a slot, in a folder of the engine's own, written and read by one thread in the order asked.

    header   magic, bytes of the content, key of the write, CRC-32 of the content
    content

A file is believed only if its header names the write that is expected there and the checksum holds; anything else (a
full disk, a missing, shortened, stale or damaged file) ends that one write or read as failed, and nothing more. The
folder is locked while in use, and the files that a crash has left there are removed at the start.
"""

import contextlib
import fcntl
import os
import queue
import struct
import threading
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jaxserve.core.errors import ConfigError

_HEADER = struct.Struct("<8sQQI")
_MAGIC = b"jaxservK"
SUFFIX = ".kvblock"


class DiskStore:
    """Raises ConfigError when the folder cannot be used, or another engine uses it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._lock = _lock(self.folder)
        self.clear()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="jaxserve-disk", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _close, self._jobs, self._thread, self.folder, self._lock)

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` after those submitted before, in the store's thread. It must not raise."""
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until every job submitted so far has run."""
        done = threading.Event()
        self.submit(done.set)
        done.wait()

    def close(self) -> None:
        """Finish what was submitted, remove the files and give the folder free. Also happens when the program ends."""
        self._finalizer()

    # --- in the store's thread --------------------------------------------------------------------------------

    def write(self, slot: int, key: int, content: memoryview) -> bool:
        """False if the disk would not take it; then nothing of it is left."""
        path = self._path(slot)
        try:
            with path.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, len(content), key, zlib.crc32(content)))
                file.write(content)
        except OSError:
            self.remove(slot)
            return False
        return True

    def read(self, slot: int, key: int, size: int) -> bytearray | None:
        """What write `key` has put there, `size` bytes, or None if that is not what the file holds."""
        content = bytearray(size)
        try:
            with self._path(slot).open("rb", buffering=0) as file:
                header = file.read(_HEADER.size)
                if file.readinto(content) != size or file.read(1):
                    return None
        except OSError:
            return None
        expected = _HEADER.pack(_MAGIC, size, key, zlib.crc32(content))
        return content if header == expected else None

    def remove(self, slot: int) -> None:
        with contextlib.suppress(OSError):
            self._path(slot).unlink(missing_ok=True)

    def clear(self) -> None:
        _remove_files(self.folder)

    def _path(self, slot: int) -> Path:
        return self.folder / f"{slot:08d}{SUFFIX}"


def _lock(folder: Path) -> IO[bytes]:
    """The lock goes with the process, so that a crash leaves none behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise
    except BlockingIOError as error:
        raise ConfigError(
            f"offload_disk_dir = {str(folder)!r} is in use by another engine: give each its own"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"offload_disk_dir = {str(folder)!r} cannot be used ({error.strerror}): give a folder that can be written"
        ) from error
    return lock


def _work(jobs: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or the last one would keep its blocks in memory


def _close(
    jobs: "queue.SimpleQueue[Callable[[], None] | None]", thread: threading.Thread, folder: Path, lock: IO[bytes]
) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()
    _remove_files(folder)
    lock.close()


def _remove_files(folder: Path) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            os.unlink(path)
