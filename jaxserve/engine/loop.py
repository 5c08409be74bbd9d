"""The engine on a thread of its own, for asynchronous callers.

The thread owns the engine: it takes commands (add, abort) between steps, steps while there is work, and sleeps on the
command queue otherwise. Outputs cross to the event loop in one call a step, whatever their number.

    event loop    --- add, abort --->   SimpleQueue   --->   engine thread: take commands, step, ...
                  <-- outputs of a step, one call_soon_threadsafe --
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable

from jaxserve.core.errors import DuplicateRequest, EngineStopped
from jaxserve.core.sequence import Request
from jaxserve.engine.engine import Engine
from jaxserve.engine.outputs import SequenceOutput

_Command = Callable[[], None]
_Item = SequenceOutput | Exception


class EngineLoop:
    """Start it inside a running event loop; `generate` may then be called from that loop by any number of tasks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[_Item]] = {}
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._stopping = False
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its step; requests still under way get EngineStopped."""
        self._send(self._set_stopping)
        await asyncio.to_thread(self._thread.join)

    async def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]:
        """A request's outputs as they come, of all its sequences. Leaving early aborts it within one step.

        Raises:
          InvalidRequest, QueueFull: nothing was queued.
          EngineStopped: the engine ended before the request did.
        """
        if not self.alive:
            raise EngineStopped(f"the engine is not running{f': {self._failure}' if self._failure else ''}")
        stream: asyncio.Queue[_Item] = asyncio.Queue()
        open_sequences = request.params.n
        if request.id in self._streams:
            raise DuplicateRequest(request.id)
        self._streams[request.id] = stream
        self._send(lambda: self._add(request))
        try:
            while open_sequences:
                item = await stream.get()
                if isinstance(item, Exception):
                    open_sequences = 0
                    raise item
                open_sequences -= item.finish_reason is not None
                yield item
        finally:
            self._streams.pop(request.id, None)
            if open_sequences:
                self._send(lambda: self._abort(request.id))

    # --- the engine's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_commands(block=not self._engine.has_work)
                if self._engine.has_work and not self._stopping:
                    self._deliver(self._engine.step())
            self._fail_all(EngineStopped("the engine was stopped"))
        except Exception as error:  # nothing may end the thread unseen: callers would wait for ever
            self._failure = error
            self._fail_all(EngineStopped(f"the engine failed: {type(error).__name__}: {error}"))
            raise

    def _take_commands(self, block: bool) -> None:
        if block:
            self._commands.get()()
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
            if stream is not None:
                stream.put_nowait(item)
