"""The routes. Each reads a body, makes a request, and passes on what the engine loop yields."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from jaxserve.core.errors import JaxserveError
from jaxserve.core.sequence import FinishReason
from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import Collector
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server import schemas
from jaxserve.server.errors import BodyTooLarge, error_response
from jaxserve.server.service import Service
from jaxserve.server.stream import EventStream, wait_for_disconnect

Pieces = AsyncGenerator[SequenceOutput, None]
CLIENT_CLOSED_REQUEST = 499
_T = TypeVar("_T")


async def generate(request: Request) -> Response:
    """`POST /generate`: see `schemas.GenerateBody`."""
    service: Service = request.app.state.service
    body = schemas.GenerateBody.parse(await _read(request, service.max_body_bytes))
    request_id = body.request_id or f"gen-{uuid.uuid4().hex}"
    wanted = service.make_request(body.prompt, body.params, request_id, body.cache_salt)
    pieces = service.loop.generate(wanted)
    if not body.stream:
        return await _unless_left(request, _whole(wanted, pieces, service.model_name))
    # a refusal comes before any event, with a status of its own
    first = await _unless_left(request, _first(pieces))
    return first if isinstance(first, Response) else EventStream(_pieces(first, pieces))


async def health(request: Request) -> Response:
    """200 while the engine's thread lives."""
    alive = request.app.state.service.loop.alive
    return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    card: dict[str, Any] = {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "jaxserve",
        "max_model_len": service.loop.engine.limits.max_len[0],
    }
    return JSONResponse({"object": "list", "data": [card]})


async def _unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T | Response:
    """The work's result; if the client leaves first, the work is cancelled, which aborts its request."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _first(pieces: Pieces) -> SequenceOutput:
    try:
        return await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise


async def _whole(wanted: EngineRequest, pieces: Pieces, model: str) -> Response:
    collector = Collector(wanted)
    async with aclosing(pieces):
        async for piece in pieces:
            collector.add(piece)
    failed = next((c for c in collector.output.outputs if c.finish_reason is FinishReason.ERROR), None)
    if failed is not None:
        return error_response(JaxserveError(f"the step that ran this request failed: {failed.error}"))
    return JSONResponse(schemas.whole(collector.output, model))


async def _pieces(first: SequenceOutput, rest: Pieces) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(rest):
        yield schemas.piece(first)
        async for piece in rest:
            yield schemas.piece(piece)


async def _read(request: Request, limit: int) -> bytes:
    """The body; BodyTooLarge as soon as it is over the limit, whatever its headers say."""
    if int(request.headers.get("content-length") or 0) > limit:
        raise BodyTooLarge(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLarge(limit)
    except ClientDisconnect:
        raise JaxserveError("the client left while it sent its body") from None
    return bytes(body)
