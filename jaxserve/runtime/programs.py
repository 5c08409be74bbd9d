"""Programs compiled before they are needed: tables of executables, the persistent cache, a count of what was missing.

A program is lowered and compiled ahead of time for one bucket; serving calls executables only, so nothing is ever
traced or compiled on the way. Compilation runs in threads (XLA compiles outside the interpreter's lock), through JAX's
persistent cache, short compilations included. Which programs an engine has is said in `runtime.program_set`.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental.compilation_cache import compilation_cache

from jaxserve.core.errors import ConfigError
from jaxserve.core.step_record import Compilation

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_KEPT_COMPILATIONS = 64
_STACK_BYTES = 64 << 20  # XLA's passes overflow the usual thread stack on deep graphs


def use_compilation_cache(directory: str | None) -> None:
    """Keep compiled programs in `directory` between runs; short compilations too, which JAX leaves out by default."""
    if directory:
        folder = Path(directory).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            accepted = f'a folder that can be made ({error.strerror}), or "" for none'
            raise ConfigError(f"compilation_cache_dir = {directory!r} cannot work: give {accepted}") from error
        set_compilation_cache_folder(str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def set_compilation_cache_folder(folder: str | None) -> None:
    """JAX keeps to the first folder that it has used, until its cache is reset. None: no cache."""
    if folder != jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


class CompilationCounter:
    """Counts compilations (loads from the persistent cache included) that happen inside `watch`, in its thread.

    What else a process compiles, a researcher's own training step, say, is none of the engine's business.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last: deque[Compilation] = deque(maxlen=_KEPT_COMPILATIONS)
        """The last of them, oldest first, on the machine's monotonic clock, which is a serving engine's."""
        self._watched: int | None = None
        counter = weakref.ref(self)  # JAX keeps its listeners for ever; it must not keep the runner's counter

        def listen(event: str, duration: float, **_: Any) -> None:
            found = counter()
            if found is not None and event == _COMPILE_EVENT and found._watched == threading.get_ident():
                found.count += 1
                found.last.append(Compilation(time.monotonic(), duration))

        jax.monitoring.register_event_duration_secs_listener(listen)

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._watched = threading.get_ident()
        try:
            yield
        finally:
            self._watched = None


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

    def compile(self, keys: list[Any], progress: Callable[[Any], None] = lambda key: None) -> None:
        """Build what is missing, several at a time; `progress(key)` after each, from this thread."""
        missing = [key for key in keys if key not in self._programs]
        with _deep_stacks(), ThreadPoolExecutor(self._threads, "compile") as pool:
            futures = [(key, pool.submit(self._build, key)) for key in missing]
            try:
                for key, future in futures:
                    self._programs[key] = future.result()
                    progress(key)
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
