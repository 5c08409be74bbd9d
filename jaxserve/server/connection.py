"""One connection: uvicorn's HTTP/1.1 protocol with the bounds that it leaves to others.

headers     at most `max_header_bytes`, else 431
receiving   headers and body within `receive_timeout_s`, and that for each `max_body_bytes` of an upload that have
            come, else closed: nobody holds a connection by dripping bytes
writing     a client that takes nothing for `write_timeout_s` is cut, whatever is buffered for it
number      at most `max_connections`, else 503 and closed

`sweep` looks at the clock for all of them, once a second: no timer is armed per request or per write.
"""

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jaxserve.core.server_sections import ServerConfig

SEND_BUFFER_BYTES = 128 << 10
"""What the kernel may hold for a slow reader; it would grow to megabytes of its own accord."""


class HeadersTooLarge(Exception):
    pass


class Connection(HttpToolsProtocol):
    """Made by uvicorn: `Config(http=partial(Connection, ...))`; `jaxserve.cut` of the scope's extensions cuts it."""

    def __init__(self, *args: Any, limits: ServerConfig, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._header_bytes = self._body_bytes = 0
        self._receiving_since: float | None = None
        self._unread = 0
        self._unread_since = 0.0

    # --- uvicorn's and httptools' callbacks -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receiving_since = self.loop.time()
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "too many connections: try again later", "Retry-After: 1\r\n")

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._body_bytes = 0
        self._receiving_since = self.loop.time()
        self.scope["extensions"] = {"jaxserve.cut": self.cut}  # type: ignore[typeddict-item]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving_since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._header_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"the headers are over {self._limits.max_header_bytes} bytes (max_header_bytes)")
        else:
            self._refuse(400, "this is not HTTP/1.1")

    # --- bounds -----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Drop the connection and what is buffered for it."""
        self.transport.abort()

    def sweep(self, now: float) -> None:
        """Cut the connection if its client is too slow, in either direction."""
        bodies = max(1.0, self._body_bytes / self._limits.max_body_bytes)
        since = self._receiving_since
        if since is not None and now - since > self._limits.receive_timeout_s * bodies:
            self.cut()
            return
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread or self._unread == 0:
            self._unread_since = now
        elif now - self._unread_since > self._limits.write_timeout_s:
            self.cut()
        self._unread = unread

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.max_header_bytes:
            raise HeadersTooLarge

    def _refuse(self, status: int, message: str, headers: str = "") -> None:
        kind = "invalid_request_error" if status < 500 else "service_unavailable_error"
        error = {"error": {"message": message, "type": kind, "param": None, "code": status}}
        body = json.dumps(error).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
