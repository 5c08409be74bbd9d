"""Server-sent events: `data: {json}`, a blank line, and `data: [DONE]` last. No comments, no keep-alives: some clients
strip six bytes a line and parse the rest.

Events that are ready together leave in one write. The response ends in one of three ways: all is told; the client left,
which aborts its requests; or it reads so slowly that its backlog passed the bound, and the connection is cut.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pydantic_core
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxserve.engine.stream import OutputStream
from jaxserve.server.errors import ClientLeft, error_body

DONE = b"data: [DONE]\n\n"


def frame(payloads: list[bytes]) -> bytes:
    """Payloads as events."""
    return b"".join([b"data: " + payload + b"\n\n" for payload in payloads])


async def events(payloads: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. An error after the first event can no longer change the status: it becomes an event."""
    async with aclosing(payloads):
        try:
            async for ready in payloads:
                if ready:
                    yield frame(ready)
        except Exception as error:
            yield frame([pydantic_core.to_json(error_body(error))])
        yield DONE


class EventStream(Response):
    """An ASGI response that writes events and listens for the client's leaving at the same time."""

    media_type = "text/event-stream"

    def __init__(self, outputs: OutputStream, payloads: AsyncGenerator[list[bytes], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._outputs, self._events = outputs, events(payloads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut: Callable[[], None] | None = scope.get("extensions", {}).get("jaxserve.cut")
        if cut is not None:
            self._outputs.on_overflow(cut)
        leaving = asyncio.ensure_future(_disconnected(receive))
        writing = asyncio.ensure_future(self._write(send))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() and not self._outputs.failed:
                raise ClientLeft
            await writing  # of a stream that failed, to its end: a connection that is cut takes all at once
        finally:
            self._outputs.close()
            writing.cancel()
            leaving.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for ready in self._events:
            await send({"type": "http.response.body", "body": ready, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wait_for_disconnect(request: Request) -> None:
    """Returns when the client has gone away. Only after the whole body was read."""
    await _disconnected(request.receive)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
