"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` and a status."""

import math
from typing import Any

from starlette.responses import JSONResponse

from jaxserve.batches.errors import InUse, NoSuchBatch, NoSuchFile, StoreFull
from jaxserve.core.errors import (
    DeadlineExceeded,
    EngineStopped,
    InvalidRequest,
    JaxserveError,
    RateState,
    ReaderTooSlow,
    TooBusy,
    UnknownModel,
)
from jaxserve.engine.profile import ProfileRunning

CLIENT_CLOSED_REQUEST = 499
"""What nginx calls the status of a call whose client has left; no client sees it."""


RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
"""What a refusal over a rate says of it, in the names of OpenAI's API."""


class ClientLeft(Exception):
    """Nobody is there to read an answer. No JaxserveError: there is no response to make of it, and in mid-stream
    Starlette must let it pass."""


class BodyTooLarge(InvalidRequest):
    def __init__(self, limit: int, name: str = "max_body_bytes") -> None:
        super().__init__(f"the body is over {limit} bytes: shorten it, or start the server with a larger {name}")


class NoSuchThing(InvalidRequest):
    """A path or an id that names nothing here."""


class BadKey(JaxserveError):
    """No API key, or none that is known."""


class NotAllowed(JaxserveError):
    """Whoever asks is known, and may not do this."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotServing(JaxserveError):
    """The server is starting or draining: another one may serve (HTTP 503)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NothingToProfile(JaxserveError):
    """No step ran in the time that was given (HTTP 504)."""


class TooManyRequests(JaxserveError):
    """A bound on open requests is reached (HTTP 429)."""


_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (BodyTooLarge, 413, "invalid_request_error"),
    (UnknownModel, 404, "not_found_error"),
    (NoSuchThing, 404, "not_found_error"),
    (NoSuchFile, 404, "not_found_error"),
    (NoSuchBatch, 404, "not_found_error"),
    (InUse, 409, "conflict_error"),
    (ProfileRunning, 409, "conflict_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (BadKey, 401, "authentication_error"),
    (NotAllowed, 403, "permission_error"),
    (TooBusy, 429, "rate_limit_error"),
    (TooManyRequests, 429, "rate_limit_error"),
    (NotServing, 503, "service_unavailable_error"),
    (EngineStopped, 503, "service_unavailable_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (NothingToProfile, 504, "timeout_error"),
    (StoreFull, 507, "insufficient_storage_error"),
    (ReaderTooSlow, 408, "timeout_error"),
    (JaxserveError, 500, "internal_server_error"),
)


def status_of(error: Exception) -> tuple[int, str]:
    """(HTTP status, error type)"""
    return next(
        ((status, name) for kind, status, name in _STATUS if isinstance(error, kind)), (500, "internal_server_error")
    )


def error_body(error: Exception) -> dict[str, Any]:
    status, kind = status_of(error)
    known = isinstance(error, JaxserveError)
    message = str(error) if known else f"internal error: {type(error).__name__}"
    return {"error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": status}}


def error_response(error: Exception) -> JSONResponse:
    """With Retry-After, in whole seconds, for what may go better later."""
    status, _ = status_of(error)
    headers: dict[str, str] = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(getattr(error, "retry_after_s", 1.0))))
    rate = getattr(error, "rate", None)
    if isinstance(rate, RateState):
        headers |= _rate_headers(rate)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status, headers)


def _rate_headers(rate: RateState) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{rate.kind}": str(rate.limit),
        f"x-ratelimit-remaining-{rate.kind}": str(rate.remaining),
        f"x-ratelimit-reset-{rate.kind}": f"{rate.reset_s:.3f}s",
    }
