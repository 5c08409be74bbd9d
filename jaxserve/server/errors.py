"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from typing import Any

from starlette.responses import JSONResponse

from jaxserve.core.errors import EngineStopped, InvalidRequest, JaxserveError, QueueFull

_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (InvalidRequest, 400, "invalid_request_error"),
    (QueueFull, 429, "rate_limit_error"),
    (EngineStopped, 503, "service_unavailable_error"),
    (JaxserveError, 500, "internal_server_error"),
)


class BodyTooLarge(InvalidRequest):
    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the body is over {limit} bytes: shorten it, or start the server with a larger max_body_bytes"
        )


def status_of(error: Exception) -> tuple[int, str]:
    """(HTTP status, error type)"""
    if isinstance(error, BodyTooLarge):
        return 413, "invalid_request_error"
    return next(
        ((status, name) for kind, status, name in _STATUS if isinstance(error, kind)), (500, "internal_server_error")
    )


def error_body(error: Exception) -> dict[str, Any]:
    status, kind = status_of(error)
    known = isinstance(error, JaxserveError)
    message = str(error) if known else f"internal error: {type(error).__name__}"
    return {"error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": status}}


def error_response(error: Exception) -> JSONResponse:
    status, _ = status_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_body(error), status, headers)
