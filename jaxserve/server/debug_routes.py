"""Why did it do that? What the scheduler remembers of its last steps and of every request; for the admin key only.

GET /debug/timeline         a Chrome trace: open it at ui.perfetto.dev
GET /debug/decisions        the same steps as they are recorded, for `jaxserve timeline --record`
GET /debug/requests/{id}    where a request's time went, live or ended

POST /debug/profile is in `profile`.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve.engine.facts import RequestState
from jaxserve.metrics.decision_record import to_json
from jaxserve.metrics.timeline import chrome_trace
from jaxserve.server.service import Service

PATIENCE_S = 10.0
"""A step under way may take as long; the question is put after it."""


async def timeline(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse(chrome_trace(await service.client.decisions(PATIENCE_S)))


async def decisions(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse(to_json(await service.client.decisions(PATIENCE_S)))


async def one_request(request: Request) -> Response:
    service: Service = request.app.state.service
    name = request.path_params["request_id"]
    found = await service.client.request_states(service.names.ids(name), PATIENCE_S)
    if not found:
        message = (
            f"request {name!r} is not known: it never came, or ended too long ago; give an answer's id or X-Request-Id"
        )
        body = {"message": message, "type": "invalid_request_error", "param": "request_id", "code": 404}
        return JSONResponse({"error": body}, 404)
    return JSONResponse({"id": name, "sequences": [_told(sequence, one) for sequence, one in found.items()]})


def _told(sequence: str, one: RequestState) -> dict[str, Any]:
    first = one.first_token
    return {
        "id": sequence,
        "state": one.state,
        "total_s": sum(one.seconds.values()),
        "seconds": one.seconds,
        "ttft_s": None if first is None else sum(first.values()),
        "ttft_parts_s": first,
        "preemptions": [
            {"for": entry.claimant, "fate": entry.fate, "prices_s": dict(entry.prices)}
            for entry in one.preemptions
        ],
    }  # fmt: skip
