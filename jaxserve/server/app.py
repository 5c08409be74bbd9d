"""The application: routes, errors, and the engine's thread between start-up and shutdown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxserve.core.errors import JaxserveError
from jaxserve.server import routes
from jaxserve.server.errors import error_response
from jaxserve.server.service import Service


def create_app(service: Service) -> Starlette:
    """A Starlette application that serves one engine; it starts and stops the engine's loop with itself."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.loop.start()
        try:
            yield
        finally:
            await service.loop.stop()

    app = Starlette(
        routes=[
            Route("/generate", routes.generate, methods=["POST"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/v1/models", routes.models, methods=["GET"]),
        ],
        exception_handlers={JaxserveError: _known, HTTPException: _http, Exception: _unknown},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _known(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _unknown(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "internal_server_error"
    body = {"message": error.detail, "type": kind, "param": None, "code": error.status_code}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)
