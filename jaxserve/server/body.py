"""Reading a request's body, to a bound."""

from starlette.requests import ClientDisconnect, Request

from jaxserve.core.errors import JaxserveError
from jaxserve.server.errors import BodyTooLarge


class ClientLeft(JaxserveError):
    """Nobody is there to read an answer."""


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """The body; BodyTooLarge as soon as it is over the limit, whatever its headers say."""
    limit = request.app.state.service.config.max_body_bytes if limit is None else limit
    declared = request.headers.get("content-length") or "0"
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise BodyTooLarge(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLarge(limit)
    except ClientDisconnect:
        raise ClientLeft("the client left while it sent its body") from None
    return bytes(body)
