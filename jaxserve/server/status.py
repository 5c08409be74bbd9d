"""What can be asked of the server itself: is it alive, is it ready, which model, which version, and its metrics."""

import platform
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve import __version__
from jaxserve.server.service import Service
from jaxserve.server.state import ServerState


async def health(request: Request) -> Response:
    """200 while the engine's thread lives and its step does not hang; also while the model is still loading."""
    state: ServerState = request.app.state.server
    trouble = state.trouble()
    return JSONResponse({"status": trouble or "ok"}, 503 if trouble else 200)


async def ready(request: Request) -> Response:
    """200 once every program is compiled, until the server drains."""
    state: ServerState = request.app.state.server
    trouble = state.trouble()
    status = trouble or state.phase
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


async def version(request: Request) -> Response:
    return JSONResponse({"version": __version__, "python": platform.python_version()})


def model_card(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "jaxserve",
        "root": service.model_name,
        "parent": None,
        "max_model_len": service.max_model_len,
    }


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [model_card(request.app.state.service)]})


async def model(request: Request) -> Response:
    service: Service = request.app.state.service
    service.check_model(request.path_params["model"])
    return JSONResponse(model_card(service))


async def metrics(request: Request) -> Response:
    """Prometheus' text format or OpenMetrics, as the scraper asks; while the model loads, of the process alone."""
    state: ServerState = request.app.state.server
    kept = request.app.state.batches
    lines = 0 if kept is None else kept.num_lines
    body, content_type = await state.telemetry.scrape(request.headers.get("accept", ""), state.open_calls, lines)
    return Response(body, headers={"content-type": content_type})
