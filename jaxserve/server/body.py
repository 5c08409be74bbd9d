"""Reading a request's body, to a bound."""

from starlette.requests import ClientDisconnect, Request

from jaxserve.core.errors import JaxserveError
from jaxserve.server.errors import BodyTooLarge


class ClientLeft(JaxserveError):
    """Nobody is there to read an answer."""


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """The body; BodyTooLarge if it is over the limit, whatever its headers say.

    As many bytes again are read and dropped: closed while bytes are unread, TCP resets the connection, and a client
    that still sends sees that instead of the 413. A body past even that is refused at once.
    """
    limit = request.app.state.service.config.max_body_bytes if limit is None else limit
    declared = request.headers.get("content-length") or "0"
    if declared.isdecimal() and int(declared[:20]) > 2 * limit:
        raise BodyTooLarge(limit)
    body = bytearray()
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                body += chunk
            elif size > 2 * limit:
                break
    except ClientDisconnect:
        raise ClientLeft("the client left while it sent its body") from None
    if size > limit:
        raise BodyTooLarge(limit)
    return bytes(body)
