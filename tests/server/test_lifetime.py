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
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jaxserve.cli import main
from jaxserve.server import serve
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.replay import replay

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "--max-num-seqs=8", "--max-num-batched-tokens=128", "--decode-buckets=8", "--prefill-buckets=128",
    "--mixed-decode-buckets=8", "--prefill-rows=4", "--num-blocks=200",
]  # fmt: skip


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
        for _ in range(1200):
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                self.phases.append(httpx.get(f"{self.url}/ready", timeout=5).json()["status"])
                if self.phases[-1] == "ready":
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server does not become ready")

    def stream(self, tokens: int) -> list[dict]:
        """The payloads of a stream, those that came."""
        body = {"prompt": "ROMEO:\n", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
        return [json.loads(line) for line in lines]


@pytest.fixture
def start(compilation_cache: str) -> Iterator:
    started: list[Process] = []

    def make(*options: str) -> Process:
        started.append(Process(compilation_cache, *options))
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.wait(10)
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
    events: list[dict] = []
    reader = threading.Thread(target=lambda: events.extend(server.stream(700)))
    reader.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert httpx.get(f"{server.url}/ready").json() == {"status": "draining"}
    assert httpx.get(f"{server.url}/health").status_code == 200
    reader.join(60)
    assert len(events) == 700 and events[-1]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_what_does_not_finish_in_time_gets_an_error(start) -> None:
    server = start("--drain-timeout-s=0.2")
    server.wait_until_ready()
    events: list[dict] = []
    reader = threading.Thread(target=lambda: events.extend(server.stream(1000)))
    reader.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    reader.join(30)
    assert events[-1]["error"]["code"] == 503 and "shutting down" in events[-1]["error"]["message"]
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_what_was_served_is_on_record_after_sigterm(start, tmp_path) -> None:
    """A request under way, too, which the drain fails: `replay` decides as the server did, `simulate` takes it."""
    path = tmp_path / "record.jsonl"
    server = start(f"--record={path}", "--drain-timeout-s=0.2")
    server.wait_until_ready()
    for tokens in (3, 12, 5):
        assert len(server.stream(tokens)) == tokens
    reader = threading.Thread(target=server.stream, args=(1000,))
    reader.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    reader.join(30)
    assert server.process.wait(30) == 0
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

    def read_until_cut() -> None:
        with contextlib.suppress(httpx.TransportError):
            server.stream(1000)

    reader = threading.Thread(target=read_until_cut)
    reader.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(5) == 128 + signal.SIGTERM
    reader.join(10)


@pytest.mark.slow
def test_what_cannot_work_is_one_line(start) -> None:
    for options, words in [
        (["--model=/no/such/model"], "/no/such/model"),
        (["--ssl-certfile=/no/such/file"], "ssl_certfile"),
        (["--api-keys-file=/no/such/file"], "cannot be read"),
    ]:
        server = start(*options)
        assert server.process.wait(60) == 2
        error = server.process.stderr.read().decode()
        assert words in error and "Traceback" not in error
