"""Reading a request's body, to a bound."""

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from jaxserve.server.errors import BodyTooLarge, ClientLeft


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


class Incoming:
    """What a call receives, which remembers whether the body has come to its end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = self._ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drop_rest(self, most_bytes: int) -> None:
        """Read on before a refusal is sent: a connection closed while bytes are unread is reset by TCP, and a client
        that still sends would see that instead of the answer. Past `most_bytes` it may."""
        dropped = 0
        while not self._ended and dropped <= most_bytes:
            dropped += len((await self()).get("body", b""))
