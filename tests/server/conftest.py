"""Two applications on a real uvicorn on loopback: one over the fake device, one over the embedded model."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from jaxserve.batches.store import Store
from jaxserve.core.sequence import Request
from jaxserve.core.server_sections import BatchConfig, ServerConfig
from jaxserve.engine.engine import Engine
from jaxserve.engine.loop import EngineLoop
from jaxserve.llm import LLM
from jaxserve.runtime import profile
from jaxserve.server.app import create_app
from jaxserve.server.batches import Batches
from jaxserve.server.keys import Keys
from jaxserve.server.log import JsonFormatter, logger
from jaxserve.server.serve import Server, service_of
from jaxserve.server.service import Service
from jaxserve.server.traces import RequestTraces
from tests.engine.conftest import build_engine

FEW_PROGRAMS: dict[str, Any] = {
    "max_num_seqs": 8, "max_num_batched_tokens": 128, "decode_buckets": (8,), "mixed_decode_buckets": (8,),
    "prefill_buckets": (128,), "prefill_rows": 8, "num_blocks": 200,
}  # fmt: skip
"""For the embedded model."""
SMALL = [
    "--max-num-seqs=8", "--max-num-batched-tokens=128", "--decode-buckets=8", "--mixed-decode-buckets=8",
    "--prefill-buckets=128", "--prefill-rows=8", "--num-blocks=200",
]  # fmt: skip
"""The same for a command line: a process finds the programs that `llm` has left in the folder of the session."""
PATIENCE_S = 60.0
"""How long a test waits for what must come, on however busy a machine."""


@dataclass
class Running:
    client: httpx.Client
    engine: Any
    url: str
    app: Starlette


class Letters:
    """Stands for a tokenizer where the fake device does: a character is a token."""

    max_token_chars = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) % 97 for c in text]


class Background:
    """The server that `jaxserve serve` runs, on a thread of its own, on a port that was free."""

    def __init__(self, app: Starlette) -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.server = Server(app, app.state.server.config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([sock])), daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def fake_service(engine: Engine, device: Any = None, **settings: Any) -> Service:
    def make_request(prompt: Any, params: Any, request_id: str, salt: str, **asked: Any) -> Request:
        return Request(id=request_id, prompt=tuple(prompt), params=params, cache_salt=salt, **asked)

    config = ServerConfig(**({"max_body_bytes": 4000} | settings))
    loop = EngineLoop(engine, device=device, profiler=profile)
    return Service(loop, make_request, Letters(), "fake", config)  # type: ignore[arg-type]


def serve(
    service: Service | None,
    keys: Keys | None = None,
    kept: Batches | None = None,
    traces: RequestTraces | None = None,
) -> Iterator[Running]:
    app = create_app(service, keys=keys, kept=kept, traces=traces)
    background = Background(app)
    with httpx.Client(base_url=background.url, timeout=PATIENCE_S) as client:
        yield Running(client, service.client.engine if service else None, background.url, app)
    background.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    yield from serve(fake_service(build_engine(max_model_len=20_000, blocks=3000, max_waiting=20)))


@pytest.fixture(scope="session")
def llm(compilation_cache: str) -> LLM:
    return LLM("embedded", progress=False, compilation_cache_dir=compilation_cache, **FEW_PROGRAMS)


def llm_service(llm: LLM, **settings: Any) -> Service:
    return service_of(llm, ServerConfig(**settings))


@pytest.fixture(scope="session")
def embedded(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With files and batches."""
    folder = tmp_path_factory.mktemp("batches")
    config = BatchConfig(batch_dir=str(folder), batch_concurrency=4, batch_max_file_bytes=50_000, batch_max_lines=100)
    yield from serve(llm_service(llm), kept=Batches(Store(folder, 1 << 30), config))


def http_post(path: str, body: object) -> bytes:
    """The bytes of a request."""
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


def call_and_leave(running: Running, body: dict[str, Any]) -> None:
    """`POST /generate`, and gone as soon as all of its completions run."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(http_post("/generate", body))
        wait_for(lambda: running.engine.scheduler.num_running == body.get("n", 1))


def wait_for(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def assert_idle(engine: Engine) -> None:
    """Every block is free again, soon."""
    pool = engine.scheduler.blocks.pool
    wait_for(lambda: pool.num_free == pool.capacity and not engine.scheduler.num_running)


@contextmanager
def log_lines(count: int) -> Iterator[list[dict[str, Any]]]:
    """The next `count` lines of the log, when the block has ended."""
    found: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield found
        wait_for(lambda: len(found) >= count)  # a line is written after its answer has left
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
