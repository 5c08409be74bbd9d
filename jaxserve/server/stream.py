"""Server-sent events: `data: {json}`, a blank line, and `data: [DONE]` last. No comments, no keep-alives: some clients
strip six bytes a line and parse the rest."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jaxserve.server.errors import error_body

DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def events(payloads: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. An error after the first event can no longer change the status: it becomes an event."""
    async with aclosing(payloads):
        try:
            async for payload in payloads:
                yield event(payload)
        except Exception as error:
            yield event(error_body(error))
        yield DONE


class EventStream(StreamingResponse):
    """Closes its generator when the client leaves, so that the request behind it is aborted at once."""

    def __init__(self, payloads: AsyncGenerator[dict[str, Any], None]) -> None:
        self._events = events(payloads)
        super().__init__(self._events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def wait_for_disconnect(request: Request) -> None:
    """Returns when the client has gone away. Only after the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
