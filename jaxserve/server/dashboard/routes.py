"""The dashboard's routes. The files are the package's own: no build step, nothing from elsewhere."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from jaxserve.metrics.view import Seen
from jaxserve.server.state import ServerState

FEED_PATHS = frozenset({"/dashboard/state", "/dashboard/feed"})
PERIOD_S = 1.0
_FILES = {
    "/dashboard": ("index.html", "text/html"),
    "/dashboard/dashboard.css": ("dashboard.css", "text/css"),
    "/dashboard/dashboard.js": ("dashboard.js", "text/javascript"),
    "/dashboard/charts.js": ("charts.js", "text/javascript"),
}
PAGE_PATHS = frozenset(_FILES) | {"/"}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


async def page(request: Request) -> Response:
    name, kind = _FILES[request.url.path]
    return FileResponse(Path(__file__).parent / name, media_type=kind, headers=_HEADERS)


async def home(request: Request) -> Response:
    """Whoever follows the address that the server prints lands on the page; relative, so that proxies may prefix it."""
    return RedirectResponse("dashboard")


async def state(request: Request) -> Response:
    server: ServerState = request.app.state.server
    content, _ = await server.telemetry.view(Seen())
    return JSONResponse(content | {"phase": server.phase}, headers={"cache-control": "no-store"})


async def feed(request: Request) -> Response:
    server: ServerState = request.app.state.server
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(server), media_type="text/event-stream", headers=headers)


async def _events(server: ServerState) -> AsyncIterator[str]:
    """Until the reader leaves, or a draining server has nothing left to do."""
    seen = Seen()
    while server.phase != "draining" or server.open_calls:
        content, seen = await server.telemetry.view(seen)
        yield f"data: {json.dumps(content | {'phase': server.phase}, separators=(',', ':'))}\n\n"
        await asyncio.sleep(PERIOD_S)


ROUTES = [
    Route("/", home, methods=["GET"]),
    *(Route(path, page, methods=["GET"]) for path in _FILES),
    Route("/dashboard/state", state, methods=["GET"]),
    Route("/dashboard/feed", feed, methods=["GET"]),
]
