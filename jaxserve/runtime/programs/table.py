"""Programs compiled before they are needed: tables of executables.

A program is lowered and compiled ahead of time for one bucket. Serving calls executables only, so no step traces or
compiles anything. Compilation runs in threads (XLA compiles outside the interpreter's lock), through JAX's persistent
cache (`compilation`), short compilations included. `program_set` says which programs an engine has.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_STACK_BYTES = 64 << 20  # XLA's passes overflow the usual thread stack on deep graphs


class ProgramTable:
    """Executables by key. `build(key)` lowers and compiles one; it is called once a key, from any thread."""

    def __init__(self, build: Callable[[Any], Any], threads: int) -> None:
        self._build = build
        self._threads = threads or os.cpu_count() or 1
        self._programs: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        return self._programs[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._programs

    def __len__(self) -> int:
        return len(self._programs)

    def adopt(self, other: "ProgramTable", fits: Callable[[Any], bool]) -> None:
        """Take what another table has already built, where it fits."""
        self._programs |= {key: program for key, program in list(other._programs.items()) if fits(key)}

    def compile_here(self, key: Any) -> None:
        """Build one in this thread, if it is missing: the background's way, which leaves cores to the serving."""
        if key not in self._programs:
            self._programs[key] = self._build(key)

    def compile(self, keys: list[Any], progress: Callable[[], object] = lambda: None) -> None:
        """Build what is missing, several at a time; `progress()` after each, from this thread."""
        missing = [key for key in keys if key not in self._programs]
        with _deep_stacks(), ThreadPoolExecutor(self._threads, "compile") as pool:
            futures = [(key, pool.submit(self._build, key)) for key in missing]
            try:
                for key, future in futures:
                    self._programs[key] = future.result()
                    progress()
            except BaseException:  # Ctrl-C, say: those under way are waited for, and no more begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def compile_in_background(keys: list[tuple[ProgramTable, Any]]) -> threading.Thread:
    """Build what is missing one after the other, in a thread that ends with the process or with its tables.

    No daemon: Python ends while those run, and XLA, in the middle of a compilation, with a segmentation fault. The
    process waits for the one under way."""
    wanted = [(weakref.ref(table), key) for table, key in keys]

    def build() -> None:
        for find, key in wanted:
            table = find()
            if table is None or not threading.main_thread().is_alive():
                return
            table.compile_here(key)
            del table  # or this frame would keep it

    thread = threading.Thread(target=build, name="jaxserve-warmup")
    with _deep_stacks():
        thread.start()
    return thread


@contextmanager
def _deep_stacks() -> Iterator[None]:
    """Threads that start inside have room for XLA's passes."""
    previous = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(previous)
