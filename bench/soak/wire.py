"""HTTP by hand, so that it can also be done badly: half sent, left early, read slowly."""

import asyncio
import json
import socket
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """A stream's payloads; None stands for [DONE]."""
        lines = [line[6:] for line in self.body.split(b"\n\n") if line.startswith(b"data: ")]
        return [None if line == b"[DONE]" else json.loads(line) for line in lines]


def message(method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def form(purpose: str, content: bytes) -> tuple[bytes, str]:
    """(body, content type) of an upload."""
    parts = [
        b'--soak\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode(),
        b'\r\n--soak\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + content,
        b"\r\n--soak--\r\n",
    ]
    return b"".join(parts), "multipart/form-data; boundary=soak"


async def connect(port: int, receive_buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock, limit=receive_buffer or 1 << 16)


async def ask(port: int, sent: bytes) -> Reply:
    """Send, and read to the end. Raises OSError, EOFError or TimeoutError where there is no whole answer."""
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await connect(port)
        try:
            writer.write(sent)
            return parse(await reader.read(-1))
        finally:
            writer.close()


def parse(raw: bytes) -> Reply:
    """Raises EOFError for an answer that is not whole."""
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        raise EOFError(f"{len(raw)} bytes and no answer")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    elif len(body) < int(headers.get("content-length", 0)):
        raise EOFError(f"{len(body)} bytes of {headers['content-length']}")
    return Reply(int(first.split()[1]), headers, body)


def _joined(body: bytes) -> bytes:
    pieces: list[bytes] = []
    place = 0
    while True:
        end = body.find(b"\r\n", place)
        if end < 0:
            raise EOFError("the last chunk is missing")
        length = int(body[place:end], 16)
        if length == 0:
            return b"".join(pieces)
        pieces.append(body[end + 2 : end + 2 + length])
        place = end + 4 + length
