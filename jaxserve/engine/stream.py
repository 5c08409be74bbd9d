"""Outputs on their way from the engine's thread to one asynchronous reader.

    engine thread --(one call a step)--> push, push, ... | wake --> next() returns all that is ready

A reader that falls behind is not waited for: past `max_backlog` outputs the stream fails and its requests are aborted.
"""

import asyncio
from collections.abc import Callable, Sequence

from jaxserve.core.errors import DeadlineExceeded, ReaderTooSlow
from jaxserve.core.sequence import Request
from jaxserve.engine.outputs import SequenceOutput


class OutputStream:
    """The outputs of one or several requests. Lives on the event loop; only `EngineLoop` makes one.

    `timeout_s` bounds the whole life of the requests, `max_backlog` the outputs that nobody has fetched,
    counted from the first fetch on: before that it is not the reader who is late.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        abort: Callable[[Sequence[str]], None],
        *,
        timeout_s: float | None = None,
        max_backlog: int | None = None,
    ) -> None:
        self._open = {request.id: request.params.n for request in requests}
        self.request_ids = tuple(self._open)
        self._abort = abort
        self._max_backlog = max_backlog
        self._ready: list[SequenceOutput] = []
        self._fetched = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = None
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self.fail, DeadlineExceeded(timeout_s))
        self._on_overflow: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        """Every sequence has had its last output, or the stream failed; what is ready may still be fetched."""
        return not self._open or self._error is not None

    @property
    def failed(self) -> bool:
        """`next` will raise, after what is ready."""
        return self._error is not None

    def on_overflow(self, call: Callable[[], None]) -> None:
        """Have `call` called once when the reader falls too far behind, at once if it has: whoever is stuck writing to
        it can be freed."""
        self._on_overflow = call
        if isinstance(self._error, ReaderTooSlow):
            call()

    async def next(self) -> list[SequenceOutput]:
        """All outputs that are ready, at least one; an empty list when every sequence has ended.

        Raises:
          InvalidRequest, QueueFull: a request was refused.
          DeadlineExceeded, ReaderTooSlow, EngineStopped: the stream failed, and its requests are aborted.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                return []
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        ready, self._ready = self._ready, []
        self._fetched = True
        return ready

    def close(self) -> None:
        """Whatever has not ended is aborted within one step. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open:
            left, self._open = tuple(self._open), {}
            self._abort(left)

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after what is ready."""
        if self.ended:
            return
        self._error = error
        self.close()
        self._wake()

    def has(self, request_id: str) -> bool:
        """Whether a request of the stream has not ended."""
        return request_id in self._open

    def num_open(self, request_id: str) -> int:
        """Sequences of a request that have not ended."""
        return self._open.get(request_id, 0)

    # --- for the loop -----------------------------------------------------------------------------------------

    def push(self, output: SequenceOutput) -> None:
        if output.request_id not in self._open:
            return
        if output.finish_reason is not None:
            self._open[output.request_id] -= 1
            if not self._open[output.request_id]:
                del self._open[output.request_id]
        self._ready.append(output)
        self._wake()
        if self._fetched and self._max_backlog is not None and len(self._ready) > self._max_backlog:
            self._ready.clear()
            self._error = ReaderTooSlow(self._max_backlog)
            self.close()
            if self._on_overflow is not None:
                self._on_overflow()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
