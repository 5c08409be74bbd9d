"""`GET /metrics`: the Prometheus exposition, in the text format or OpenMetrics, as the scraper asks."""

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.server.state import ServerState


async def metrics(request: Request) -> Response:
    """Also while the model loads, when there is only the process to tell of."""
    state: ServerState = request.app.state.server
    kept = request.app.state.batches
    lines = 0 if kept is None else kept.num_lines
    body, content_type = await state.telemetry.scrape(request.headers.get("accept", ""), state.open_calls, lines)
    return Response(body, headers={"content-type": content_type})
