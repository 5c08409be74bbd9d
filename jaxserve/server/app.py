"""The application: its routes, and the engine's thread between start-up and shutdown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxserve.core.config import ServerConfig
from jaxserve.core.errors import JaxserveError
from jaxserve.server import chat, completions, generate, metrics_routes, openapi, status, tokens
from jaxserve.server.body import ClientLeft
from jaxserve.server.errors import error_response
from jaxserve.server.front import Front
from jaxserve.server.keys import Keys
from jaxserve.server.service import Service
from jaxserve.server.state import ServerState

ROUTES = [
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/chat/completions", chat.chat, methods=["POST"]),
    Route("/generate", generate.generate, methods=["POST"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/v1/models", status.models, methods=["GET"]),
    Route("/v1/models/{model:path}", status.model, methods=["GET"]),
    Route("/health", status.health, methods=["GET"]),
    Route("/ready", status.ready, methods=["GET"]),
    Route("/version", status.version, methods=["GET"]),
    Route("/metrics", metrics_routes.metrics, methods=["GET"]),
    Route("/openapi.json", openapi.openapi, methods=["GET"]),
]


def create_app(
    service: Service | None = None, config: ServerConfig | None = None, keys: Keys | None = None
) -> Starlette:
    """A Starlette application that serves one engine; it starts and stops the engine's loop with itself.

    Without a `service` it answers 503 until `open_service(app, service)`.
    """
    state = ServerState(config or (service.config if service else ServerConfig()))
    origins = [origin.strip() for origin in (state.config.cors_origins or "").split(",") if origin.strip()]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if service is not None:
            open_service(app, service)
        elif (begin := getattr(app.state, "on_start", None)) is not None:
            begin()
        try:
            yield
        finally:
            if state.service is not None:
                await state.service.loop.stop()
                state.telemetry.leave()

    middleware = [Middleware(Front, state=state, keys=keys or Keys())]
    if origins:
        middleware.insert(
            0, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        )
    app = Starlette(
        routes=list(ROUTES),
        middleware=middleware,
        exception_handlers={JaxserveError: _known, HTTPException: _http},
        lifespan=lifespan,
    )
    app.state.server = state
    return app


def open_service(app: Starlette, service: Service) -> None:
    """From now on the application serves; on its event loop."""
    app.state.service = service
    app.state.server.open(service)


async def _known(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientLeft):
        raise error
    return error_response(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "internal_server_error"
    body = {"message": error.detail, "type": kind, "param": None, "code": error.status_code}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)
