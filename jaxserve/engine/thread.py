"""The thread that owns an engine: it takes commands between steps, steps while there is work, and sleeps otherwise.

event loop    --- commands --->   SimpleQueue   --->   engine thread: take commands, step, ...
              <-- outputs of a step, one call_soon_threadsafe --
"""

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from jaxserve.core.clock import Clock
from jaxserve.core.errors import EngineStopped
from jaxserve.engine.engine import Engine
from jaxserve.engine.outputs import SequenceOutput

T = TypeVar("T")
Command = Callable[[], None]
Delivery = tuple[str, SequenceOutput | Exception]
"""(request id, an output of it, or why it was refused)"""


class EngineThread:
    """`deliver` and `ended` are called on the event loop on which the thread was started: with what became known, and
    once, with what the thread ended of."""

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[Delivery]], None],
        ended: Callable[[EngineStopped], None],
        clock: Clock,
    ) -> None:
        self._engine, self._deliver, self._ended, self._clock = engine, deliver, ended, clock
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._step_began_s: float | None = None
        self.failure: Exception | None = None
        self.num_steps = 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    @property
    def step_age_s(self) -> float:
        began = self._step_began_s
        return 0.0 if began is None else self._clock.now() - began

    def stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        return "".join(traceback.format_stack(frame)) if frame is not None else "the thread has ended"

    # --- from the event loop ----------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its step."""
        self.send(self._set_stopping)
        await asyncio.to_thread(self._thread.join)

    def send(self, command: Command) -> None:
        """Have `command` called on the engine's thread, between two steps."""
        self._commands.put(command)

    async def ask(self, question: Callable[[Engine], T], timeout_s: float) -> T:
        """The answer to a question that is put to the engine between two steps; it must be quick.

        Raises:
          TimeoutError: the step under way takes longer. EngineStopped: the engine does not run.
        """
        if not self.alive:
            raise EngineStopped("the engine is not running")
        answer: Future[T] = Future()

        def put() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(question(self._engine))
                except Exception as error:
                    answer.set_exception(error)

        self.send(put)
        async with asyncio.timeout(timeout_s):  # `wait_for` can lose a cancellation before Python 3.12
            return await asyncio.wrap_future(answer)

    # --- on the thread ----------------------------------------------------------------------------------------

    def post(self, items: list[Delivery]) -> None:
        """Hand items over to the event loop."""
        self._call(self._deliver, items)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_commands(self._patience_s())
                if self._engine.has_work and not self._stopping:
                    self._step_began_s = self._clock.now()
                    outputs = self._engine.step()
                    self._step_began_s = None
                    self.num_steps += 1
                    if outputs:
                        self.post([(output.request_id, output) for output in outputs])
            self._call(self._ended, EngineStopped("the engine was stopped"))
        except Exception as error:  # nothing may end the thread unseen: callers would wait for ever
            self.failure = error
            self._call(self._ended, EngineStopped(f"the engine failed: {type(error).__name__}: {error}"))
            raise

    def _patience_s(self) -> float | None:
        """How long to wait for a command before the next step; None: until there is one."""
        if not self._engine.has_work:
            return None
        if not self._engine.idle:
            return 0.0
        wake_s = self._engine.wake_s  # what is here waits: for company, or for a sequence to end
        return None if wake_s is None else max(wake_s - self._clock.now(), 0.0)

    def _take_commands(self, wait_s: float | None) -> None:
        if wait_s is None or wait_s > 0.0:
            try:
                self._commands.get(timeout=wait_s)()
            except queue.Empty:
                return
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)

    def _set_stopping(self) -> None:
        self._stopping = True
