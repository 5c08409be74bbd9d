"""JAX's persistent compilation cache, and a count of what was compiled although it should have been ready."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
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
