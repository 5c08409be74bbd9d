"""The application over the fake device, on a real uvicorn on loopback."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from jaxserve.core.sequence import Request
from jaxserve.engine.engine import Engine
from jaxserve.engine.loop import EngineLoop
from jaxserve.server.app import create_app
from jaxserve.server.service import Service
from tests.engine.conftest import build_engine


@dataclass
class Running:
    client: httpx.Client
    engine: Engine
    url: str


def start(engine: Engine, max_body_bytes: int = 4000) -> tuple[uvicorn.Server, threading.Thread, str]:
    def make_request(prompt, params, request_id, salt) -> Request:
        tokens = [ord(c) % 97 for c in prompt] if isinstance(prompt, str) else prompt
        return Request(id=request_id, prompt=tuple(tokens), params=params, cache_salt=salt)

    service = Service(EngineLoop(engine), make_request, "fake", max_body_bytes)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    for _ in range(200):
        if server.started:
            break
        threading.Event().wait(0.02)
    return server, thread, url


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    engine = build_engine(max_model_len=20_000, blocks=3000, max_waiting=20)
    server, thread, url = start(engine)
    with httpx.Client(base_url=url, timeout=20) as client:
        yield Running(client, engine, url)
    server.should_exit = True
    thread.join(10)
