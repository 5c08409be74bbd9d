"""The application: its routes, and the engine's thread between start-up and shutdown."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxserve.core.errors import JaxserveError
from jaxserve.core.server_sections import ServerConfig
from jaxserve.server import (
    batches,
    chat,
    completions,
    debug_routes,
    files,
    generate,
    openapi,
    profile,
    status,
    tokens,
)
from jaxserve.server.batches import Batches
from jaxserve.server.dashboard import routes as dashboard
from jaxserve.server.errors import RATE_HEADERS, error_response
from jaxserve.server.front import Front
from jaxserve.server.keys import Keys
from jaxserve.server.service import Service
from jaxserve.server.state import ServerState
from jaxserve.server.traces import RequestTraces

ROUTES = [
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/chat/completions", chat.chat, methods=["POST"]),
    Route("/generate", generate.generate, methods=["POST"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokens.tokenizer_info, methods=["GET"]),
    Route("/v1/files", files.upload, methods=["POST"]),
    Route("/v1/files", files.listing, methods=["GET"]),
    Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
    Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
    Route("/v1/batches", batches.create, methods=["POST"]),
    Route("/v1/batches", batches.listing, methods=["GET"]),
    Route("/v1/batches/{batch_id}", batches.retrieve, methods=["GET"]),
    Route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"]),
    Route("/v1/models", status.models, methods=["GET"]),
    Route("/v1/models/{model:path}", status.model, methods=["GET"]),
    Route("/health", status.health, methods=["GET"]),
    Route("/ready", status.ready, methods=["GET"]),
    Route("/version", status.version, methods=["GET"]),
    Route("/metrics", status.metrics, methods=["GET"]),
    *dashboard.ROUTES,
    Route("/debug/timeline", debug_routes.timeline, methods=["GET"]),
    Route("/debug/decisions", debug_routes.decisions, methods=["GET"]),
    Route("/debug/profile", profile.profile, methods=["POST"]),
    Route("/debug/requests/{request_id:path}", debug_routes.one_request, methods=["GET"]),
    Route("/openapi.json", openapi.openapi, methods=["GET"]),
]


def create_app(
    service: Service | None = None,
    config: ServerConfig | None = None,
    keys: Keys | None = None,
    kept: Batches | None = None,
    traces: RequestTraces | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> Starlette:
    """A Starlette application that serves one engine; it starts and stops the engine's loop with itself.

    Without a `service` it answers 503 until `open_service(app, service)`; `on_start` is called on its event loop.
    `kept`: where files and batches are; None: nowhere. `traces`: what is told of every generating call.
    """
    keys = keys or Keys()
    state = ServerState(config or (service.config if service else ServerConfig()), keys.tenants)
    origins = [origin.strip() for origin in (state.config.cors_origins or "").split(",") if origin.strip()]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as running:
            app.state.running = running
            if kept is not None:
                running.callback(kept.store.close)
            if traces is not None:
                running.push_async_callback(asyncio.to_thread, traces.close)
            if service is not None:
                await open_service(app, service)
            on_start()
            yield

    middleware = [Middleware(Front, state=state, keys=keys, traces=traces)]
    if origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", *RATE_HEADERS],
        )  # fmt: skip
        middleware.insert(0, cors)
    app = Starlette(
        routes=list(ROUTES),
        middleware=middleware,
        exception_handlers={JaxserveError: _known, HTTPException: _http},
        lifespan=lifespan,
    )
    app.state.server, app.state.batches, app.state.traces = state, kept, traces
    return app


async def open_service(app: Starlette, service: Service) -> None:
    """From now on the application serves; on its event loop."""
    app.state.service = service
    app.state.server.open(service)
    app.state.running.push_async_callback(service.client.stop)
    if app.state.batches is not None:
        await app.state.running.enter_async_context(
            app.state.batches.running(service, app.state.server, app.state.traces)
        )


async def _known(request: Request, error: Exception) -> Response:
    request.state.call.failure = type(error).__name__
    return error_response(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "internal_server_error"
    message = error.detail
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {request.url.path[:200]} here: /openapi.json tells what there is"
    body = {"message": message, "type": kind, "param": None, "code": error.status_code}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)
