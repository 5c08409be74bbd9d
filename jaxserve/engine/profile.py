"""A profile of an engine's next steps, while it goes on serving."""

import asyncio
from pathlib import Path
from typing import Protocol

from jaxserve.core.errors import JaxserveError
from jaxserve.core.step_record import StepRecord
from jaxserve.engine.engine import Engine


class ProfileRunning(JaxserveError):
    """A process has one profiler, and it is in use."""


class Profiler(Protocol):
    """Profiles the process that the engine runs in; the module `runtime.profile` is one. May block for a while."""

    def start(self, folder: Path) -> None:
        """Raises RuntimeError: a profile is being taken already."""
        ...

    def stop(self, folder: Path) -> None: ...


class StepCount:
    """An observer that sets `reached` when `steps` steps planned after `begin` have run; made on an event loop."""

    def __init__(self, steps: int) -> None:
        self.reached = asyncio.Event()
        self.count, self._steps = 0, steps
        self._since_s = float("inf")
        self._loop = asyncio.get_running_loop()

    def begin(self, engine: Engine) -> None:
        self._since_s = engine.now
        engine.observers.append(self)

    def end(self, engine: Engine) -> None:
        engine.observers.remove(self)

    def observe(self, record: StepRecord) -> None:
        if record.step is not None and record.step.planned_s >= self._since_s:
            self.count += 1
            if self.count == self._steps:
                self._loop.call_soon_threadsafe(self.reached.set)
