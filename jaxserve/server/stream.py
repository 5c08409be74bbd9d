"""Server-sent events: `data: {json}`, a blank line, and `data: [DONE]` last. No comments, no keep-alives: some clients
strip six bytes a line and parse the rest."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from jaxserve.server.errors import error_body

DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def events(payloads: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. An error after the first event can no longer change the status: it becomes an event."""
    try:
        async for payload in payloads:
            yield event(payload)
    except Exception as error:
        yield event(error_body(error))
    yield DONE


def streaming(payloads: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    return StreamingResponse(events(payloads), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def wait_for_disconnect(request: Request) -> None:
    """Returns when the client has gone away. Only after the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
