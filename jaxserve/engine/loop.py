"""The engine on a thread of its own, for asynchronous callers.

The thread owns the engine: it takes commands (add, abort) between steps, steps while there is work, and sleeps on the
command queue otherwise. Outputs cross to the event loop in one call a step, whatever their number, and each reader
finds all of its own there at once.

    event loop    --- add, abort --->   SimpleQueue   --->   engine thread: take commands, step, ...
                  <-- outputs of a step, one call_soon_threadsafe --
"""

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from jaxserve.core.clock import Clock, MonotonicClock
from jaxserve.core.errors import DuplicateRequest, EngineStopped
from jaxserve.core.sequence import Request
from jaxserve.engine.engine import Engine
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.engine.stream import OutputStream

T = TypeVar("T")
_Command = Callable[[], None]
_Item = SequenceOutput | Exception


class EngineLoop:
    """Start it inside a running event loop; `open` and `generate` may then be called from that loop by any task."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or MonotonicClock()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, OutputStream] = {}
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._stopping = False
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step_began_s: float | None = None
        self.num_steps = 0

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._failure is None

    @property
    def failure(self) -> Exception | None:
        """What ended the thread, if something did."""
        return self._failure

    @property
    def num_open(self) -> int:
        """Sequences that have not ended, of all requests."""
        return sum(stream.num_open(request_id) for request_id, stream in self._streams.items())

    @property
    def step_age_s(self) -> float:
        """How long the step under way has been running; 0 between steps."""
        began = self._step_began_s
        return 0.0 if began is None else self._clock.now() - began

    def stack(self) -> str:
        """Where the engine's thread is at this moment, for whoever finds that it hangs."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        return "".join(traceback.format_stack(frame)) if frame is not None else "the thread has ended"

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._engine.expects_more = True
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its step; requests still under way get EngineStopped."""
        self._send(self._set_stopping)
        await asyncio.to_thread(self._thread.join)

    def open(
        self, requests: Sequence[Request], *, timeout_s: float | None = None, max_backlog: int | None = None
    ) -> OutputStream:
        """Queue requests and return the stream of all their outputs. Whoever opens a stream closes it.

        Raises:
          EngineStopped, DuplicateRequest: nothing was queued. Other refusals come from the stream's `next`.
        """
        if not self.alive:
            raise EngineStopped(f"the engine is not running{f': {self._failure}' if self._failure else ''}")
        for request in requests:
            if request.id in self._streams:
                raise DuplicateRequest(request.id)
        stream = OutputStream(requests, self._close, timeout_s=timeout_s, max_backlog=max_backlog)
        for request in requests:
            self._streams[request.id] = stream
            self._send(partial(self._add, request))
        return stream

    async def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]:
        """A request's outputs as they come, of all its sequences. Leaving early aborts it within one step.

        Raises:
          InvalidRequest, QueueFull: nothing was queued.
          EngineStopped: the engine ended before the request did.
        """
        stream = self.open([request])
        try:
            while outputs := await stream.next():
                for output in outputs:
                    yield output
        finally:
            stream.close()

    async def ask(self, question: Callable[[Engine], T], timeout_s: float = 1.0) -> T:
        """Put a question to the engine between two of its steps; it must be quick.

        Raises:
          TimeoutError: the step under way takes longer. EngineStopped: there is nobody to ask.
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

        self._send(put)
        async with asyncio.timeout(timeout_s):  # `wait_for` can lose a cancellation before Python 3.12
            return await asyncio.wrap_future(answer)

    def fail_open(self, error: Exception) -> None:
        """End every stream with `error`, and abort what it runs."""
        for stream in list(self._streams.values()):
            stream.fail(error)

    # --- the engine's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_commands(self._patience_s())
                if self._engine.has_work and not self._stopping:
                    self._step_began_s = self._clock.now()
                    outputs = self._engine.step()
                    self._step_began_s = None
                    self.num_steps += 1
                    self._deliver(outputs)
            self._fail_all(EngineStopped("the engine was stopped"))
        except Exception as error:  # nothing may end the thread unseen: callers would wait for ever
            self._failure = error
            self._fail_all(EngineStopped(f"the engine failed: {type(error).__name__}: {error}"))
            raise

    def _patience_s(self) -> float | None:
        """How long to wait for a command before the next step; None: until there is one."""
        if not self._engine.has_work:
            return None
        if not self._engine.idle:
            return 0.0
        wake_s = self._engine.wake_s  # what is here waits: for company, or for somebody to end
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

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except Exception as error:
            self._post([(request.id, error)])

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def _deliver(self, outputs: list[SequenceOutput]) -> None:
        if outputs:
            self._post([(output.request_id, output) for output in outputs])

    def _fail_all(self, error: Exception) -> None:
        self._post([(request_id, error) for request_id in list(self._streams)])

    def _post(self, items: list[tuple[str, _Item]]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, items)

    def _set_stopping(self) -> None:
        self._stopping = True

    # --- the event loop's thread ------------------------------------------------------------------------------

    def _send(self, command: _Command) -> None:
        self._commands.put(command)

    def _hand_out(self, items: list[tuple[str, _Item]]) -> None:
        for request_id, item in items:
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            if isinstance(item, Exception):
                stream.fail(item)
                continue
            stream.push(item)
            if not stream.has(request_id):
                self._streams.pop(request_id, None)

    def _close(self, request_ids: Sequence[str]) -> None:
        """A stream is done with these before they ended."""
        for request_id in request_ids:
            if self._streams.pop(request_id, None) is not None:
                self._send(partial(self._abort, request_id))
