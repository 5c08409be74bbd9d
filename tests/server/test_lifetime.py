"""`jaxserve serve` as a process: it answers while it loads, drains on SIGTERM, exits at once on a second one."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jaxserve.cli import main
from jaxserve.server import serve
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.replay import replay
from tests.server.conftest import PATIENCE_S, SMALL, wait_for

ROOT = Path(__file__).parent.parent.parent


class Process:
    def __init__(self, cache: str, *options: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "jaxserve", "serve", f"--port={self.port}", f"--compilation-cache-dir={cache}"]
        self.process = subprocess.Popen(
            [*command, *SMALL, *options], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE
        )
        self.phases: list[str] = []

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.phase() == "ready", 5 * PATIENCE_S)

    def phase(self) -> str:
        assert self.process.poll() is None, self.process.stderr.read()
        with contextlib.suppress(httpx.TransportError):
            self.phases.append(httpx.get(f"{self.url}/ready", timeout=PATIENCE_S).json()["status"])
            return self.phases[-1]
        return "none"

    def stream(self, tokens: int, events: list[dict] | None = None) -> list[dict]:
        """The payloads of a stream, those that came; each in `events` as soon as it is there."""
        events = [] if events is None else events
        body = {"prompt": "ROMEO:\n", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S) as response:
            events.extend(json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        return events

    @contextlib.contextmanager
    def streaming(self, tokens: int) -> Iterator[list[dict]]:
        """A stream is under way when the block begins, and over when it has ended: its events."""
        events: list[dict] = []

        def read() -> None:
            with contextlib.suppress(httpx.TransportError):
                self.stream(tokens, events)

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: bool(events))
        yield events
        reader.join(PATIENCE_S)
        assert not reader.is_alive()


@pytest.fixture
def start(compilation_cache: str) -> Iterator:
    started: list[Process] = []

    def make(*options: str) -> Process:
        started.append(Process(compilation_cache, *options))
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.wait(PATIENCE_S)
        one.process.stderr.close()


def test_what_lives_as_long_as_the_server_is_frozen_before_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, frozen = serve.Loader(lambda: None), []  # type: ignore[arg-type]

    async def opened(app, service) -> None:
        frozen.append(gc.get_freeze_count())

    async def life() -> None:
        loader.attach(None, None)  # type: ignore[arg-type]
        loader.begin()
        while loader.alive:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(serve, "open_service", opened)
    try:
        asyncio.run(life())
    finally:
        gc.unfreeze()
    assert loader.error is None
    assert frozen[0] > 10_000, "the modules at least"


@pytest.mark.slow
def test_sigterm_drains_and_exits_0(start) -> None:
    server = start()
    server.wait_until_ready()
    assert set(server.phases) == {"starting", "ready"}, "it answered while it loaded"
    with server.streaming(900) as events:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.phase() == "draining")
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert len(events) == 900 and events[-1]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_what_does_not_finish_in_time_gets_an_error(start) -> None:
    server = start("--drain-timeout-s=0.05")
    server.wait_until_ready()
    with server.streaming(1000) as events:
        server.process.send_signal(signal.SIGTERM)
    assert events[-1]["error"]["code"] == 503 and "shutting down" in events[-1]["error"]["message"]
    assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_what_was_served_is_on_record_after_sigterm(start, tmp_path) -> None:
    """A request under way, too, which the drain fails: `replay` decides as the server did, `simulate` takes it."""
    path = tmp_path / "record.jsonl"
    server = start(f"--record={path}", "--drain-timeout-s=0.05")
    server.wait_until_ready()
    for tokens in (3, 12, 5):
        assert len(server.stream(tokens)) == tokens
    with server.streaming(1000):
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    record = read_record(path)
    assert [request.max_output_tokens for request in record.requests] == [3, 12, 5, 1000]
    assert [request.ends[0].output_tokens for request in record.requests[:3]] == [3, 12, 5]
    text = path.read_text()
    assert text.endswith("\n") and "ROMEO" not in text
    report = replay(record)
    assert report.share == 1.0 and report.steps >= 20, report
    assert main(["simulate", f"--trace={path}", "--cost=h200_8b_nominal", "--num-blocks=500"]) == 0


@pytest.mark.slow
def test_a_second_signal_is_obeyed_at_once(start) -> None:
    server = start()
    server.wait_until_ready()
    with server.streaming(1000) as events:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.phase() == "draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert len(events) < 1000


@pytest.mark.slow
def test_what_cannot_work_is_one_line(start) -> None:
    for options, words in [
        (["--model=/no/such/model"], "/no/such/model"),
        (["--ssl-certfile=/no/such/file"], "ssl_certfile"),
        (["--api-keys-file=/no/such/file"], "cannot be read"),
    ]:
        server = start(*options)
        assert server.process.wait(PATIENCE_S) == 2
        error = server.process.stderr.read().decode()
        assert words in error and "Traceback" not in error
