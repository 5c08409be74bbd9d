"""`/v1/files`: uploads that batches read, and what batches wrote."""

import asyncio
import tempfile
import time
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message

from jaxserve.batches.errors import StoreFull
from jaxserve.batches.store import Store
from jaxserve.core.errors import InvalidRequest
from jaxserve.server.errors import BodyTooLarge, NoSuchThing

MAX_PAGE, MAX_FILES = 100, 10_000
"""Most entries of a list, of files and of others; as OpenAI has it."""


def store_of(request: Request) -> Store:
    """Raises NoSuchThing if the server keeps no batches."""
    batches = request.app.state.batches
    if batches is None:
        raise NoSuchThing("this server keeps no files and batches: start it with --batch-dir DIR")
    return batches.store


async def upload(request: Request) -> Response:
    store = store_of(request)
    limit = request.app.state.batches.config.batch_max_file_bytes
    bounded = Request(request.scope, _bounded(request, limit))
    try:
        async with bounded.form(max_files=1, max_fields=10) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise InvalidRequest("file is missing: send multipart/form-data with a file and a purpose", "file")
            if purpose != "batch":
                raise InvalidRequest(f"purpose must be 'batch', not {purpose!r}", "purpose")
            unknown = set(form) - {"file", "purpose"}
            if unknown:
                raise InvalidRequest(f"unknown field {min(unknown)!r}; known: file, purpose", min(unknown))
            name = (file.filename or "input.jsonl")[:255]
            stored = await asyncio.to_thread(
                store.add_file, file.file, request.state.call.tenant, name, purpose, time.time()
            )
    except MultiPartException as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error.message}") from None
    except OSError as error:  # a large upload is spooled before it is kept
        place = tempfile.gettempdir()
        raise StoreFull(f"the upload cannot be received ({error.strerror}): make room in {place}") from error
    return JSONResponse(stored.body())


async def listing(request: Request) -> Response:
    store = store_of(request)
    after, limit = page_of(request, MAX_FILES, "purpose", "order")
    purpose, order = request.query_params.get("purpose"), request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be asc or desc, not {order[:80]!r}", "order")
    files, more = await asyncio.to_thread(
        store.files, request.state.call.tenant, purpose, after, limit, oldest_first=order == "asc"
    )
    return list_response([file.body() for file in files], more)


async def retrieve(request: Request) -> Response:
    file_id, tenant = request.path_params["file_id"], request.state.call.tenant
    stored = await asyncio.to_thread(store_of(request).file, file_id, tenant)
    return JSONResponse(stored.body())


async def content(request: Request) -> Response:
    store, file_id, tenant = store_of(request), request.path_params["file_id"], request.state.call.tenant
    stored = await asyncio.to_thread(store.file, file_id, tenant)
    return FileResponse(store.path(stored.id), media_type="application/octet-stream")


async def delete(request: Request) -> Response:
    file_id, tenant = request.path_params["file_id"], request.state.call.tenant
    await asyncio.to_thread(store_of(request).delete_file, file_id, tenant)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def page_of(request: Request, most: int = MAX_PAGE, *more: str) -> tuple[str | None, int]:
    """(after, limit) of a list's query, which may have `more` beside them. Raises InvalidRequest."""
    known = ("after", "limit", *more)
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"unknown parameter {name[:80]!r}; known: {', '.join(known)}", name[:80])
    text = request.query_params.get("limit", "20")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise InvalidRequest(f"limit must be a whole number from 1 to {most}", "limit")
    return request.query_params.get("after"), int(text)


def list_response(data: list[dict[str, Any]], more: bool) -> Response:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})


def _bounded(request: Request, limit: int) -> Any:
    """The request's `receive`, which refuses a body over the limit."""
    declared = request.headers.get("content-length") or "0"
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(limit, "batch_max_file_bytes")
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge(limit, "batch_max_file_bytes")
        return message

    return receive
