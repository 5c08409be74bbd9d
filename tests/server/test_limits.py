"""Bounds, and what happens past them: to bodies, headers, queues, slow senders, slow readers, deadlines."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaxserve.batches.store import Store
from jaxserve.core.server_sections import BatchConfig
from jaxserve.server.batches import Batches
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Running, assert_idle, fake_service, http_post, log_lines, serve, wait_for

SHORTER_THAN_A_REQUEST_S = 25.0
"""Whoever is cut off for another reason than the 30 s that a request may take is cut off by then."""
LONG = {"prompt": [1, 2, 3], "max_tokens": 19_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def tight() -> Iterator[Running]:
    engine = build_engine(max_model_len=20_000, blocks=3000, max_waiting=4, max_num_seqs=2)
    settings = {
        "max_header_bytes": 2000, "max_connections": 12, "max_open_requests": 8, "receive_timeout_s": 1.0,
        "write_timeout_s": 1.0, "max_stream_backlog": 500, "request_timeout_s": 30.0,
    }  # fmt: skip
    yield from serve(fake_service(engine, **settings))


@pytest.fixture(scope="module")
def patient() -> Iterator[Running]:
    """Its engine makes tokens faster than any client reads; it waits for them, so that only deadlines end a stream."""
    engine = build_engine(max_model_len=20_000, blocks=3000, max_num_seqs=2)
    yield from serve(fake_service(engine, max_stream_backlog=1_000_000))


def raw(running: Running, receive_buffer: int | None = None) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(SHORTER_THAN_A_REQUEST_S)
    sock.connect((host, int(port)))
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def test_headers_over_the_bound(tight: Running) -> None:
    with raw(tight) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 3000 + b"\r\n\r\n")
        answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 431 ") and b"max_header_bytes" in answer


def test_what_is_no_http(tight: Running) -> None:
    with raw(tight) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 400 ")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"POST /generate HTTP/1.1\r\nHo", http_post("/generate", LONG)[:-5]])
def test_a_request_that_never_comes_in_whole(tight: Running, sent: bytes) -> None:
    with raw(tight) as sock:
        sock.sendall(sent)
        assert read_to_end(sock) == b""


@pytest.mark.slow
def test_a_large_upload_may_take_its_time(tmp_path: Path) -> None:
    """As long as bytes come: it has `receive_timeout_s` for each `max_body_bytes` of it."""
    kept = Batches(Store(tmp_path, 1 << 30), BatchConfig(batch_dir=str(tmp_path)))
    fields = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    start = fields + b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    pieces = [start, *[b"y" * 1000] * 60, b"\r\n--x--\r\n"]
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {sum(map(len, pieces))}\r\n\r\n"
    )
    service = fake_service(build_engine(), max_body_bytes=1000, receive_timeout_s=2.0)
    for running in serve(service, kept=kept):
        with raw(running) as sock:
            sock.sendall(head.encode())
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.06)
            answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"bytes":60000' in answer


def test_too_many_connections(tight: Running) -> None:
    held = [raw(tight) for _ in range(14)]
    try:
        with raw(tight) as sock:
            assert read_to_end(sock).startswith(b"HTTP/1.1 503 ")
    finally:
        for sock in held:
            sock.close()

    def served() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return tight.client.get("/health").status_code == 200
        return False

    wait_for(served)  # the connections are given back


def test_a_flood_is_refused_and_the_rest_is_served(tight: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two run, four wait, and more are told to come back; nobody sees anything else."""
    refused, submit = threading.Event(), tight.engine.fake.submit

    def submit_when_full(plan: Any) -> Any:
        refused.wait(PATIENCE_S)
        return submit(plan)

    monkeypatch.setattr(tight.engine.fake, "submit", submit_when_full)

    def one(i: int) -> int:
        with httpx.Client(timeout=2 * PATIENCE_S) as client:
            response = client.post(f"{tight.url}/generate", json={"prompt": [i], "max_tokens": 60})
            assert (response.status_code == 429) == ("retry-after" in response.headers)
            if response.status_code == 429:
                refused.set()
            return response.status_code

    with ThreadPoolExecutor(9) as pool:
        statuses = list(pool.map(one, range(40)))
    assert set(statuses) == {200, 429}
    assert_idle(tight.engine)
    wait_for(lambda: tight.app.state.server.open_calls == 0)  # a call ends after its answer has left


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_aborts_and_frees(patient: Running, stream: bool) -> None:
    response = patient.client.post("/generate", json=LONG | {"timeout": 0.3, "stream": stream})
    if stream:
        assert response.status_code == 200
        error = json.loads(response.text.split("\n\n")[-3][6:])["error"]
    else:
        assert response.status_code == 504
        error = response.json()["error"]
    assert error["code"] == 504 and error["type"] == "timeout_error"
    assert_idle(patient.engine)


def test_the_servers_own_bound_on_time(tight: Running) -> None:
    """A request cannot wish for more than `request_timeout_s`."""
    from jaxserve.server.schemas.generate import GenerateBody

    assert GenerateBody.check({"prompt": "a", "timeout": 1e9}).check_timeout(30.0) == 30.0
    assert GenerateBody.check({"prompt": "a"}).check_timeout(30.0) == 30.0
    response = tight.client.post("/generate", json=LONG | {"timeout": 0})
    assert response.status_code == 400 and response.json()["error"]["param"] == "timeout"


def test_a_reader_that_reads_nothing_is_cut(tight: Running) -> None:
    """Its request is aborted, its connection dropped, and a reader beside it sees nothing of it."""
    with raw(tight, receive_buffer=4096) as slow:
        slow.sendall(http_post("/generate", LONG | {"stream": True, "n": 2, "request_id": "x" * 200}))
        tokens = tight.client.post("/generate", json={"prompt": [5], "max_tokens": 20}).json()["choices"][0][
            "token_ids"
        ]
        assert len(tokens) == 20
        assert_idle(tight.engine)
        wait_for(lambda: tight.app.state.server.open_calls == 0)
        assert b"[DONE]" not in read_to_end(slow)


def test_the_log_says_who_was_cut() -> None:
    """It did not leave: no 499."""
    engine = build_engine(max_model_len=20_000, blocks=3000)
    for running in serve(fake_service(engine, max_stream_backlog=500)):
        with raw(running, receive_buffer=4096) as slow, log_lines(1) as found:
            slow.sendall(http_post("/generate", LONG | {"stream": True, "request_id": "x" * 200}))
        assert found[0]["status"] == 200 and found[0]["error"] == "ReaderTooSlow"


def test_json_depth_and_number_of_prompts(tight: Running) -> None:
    deep = b'{"prompt": [1], "logit_bias": ' + b"[" * 1500 + b"]" * 1500 + b"}"
    response = tight.client.post("/generate", content=deep)
    assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]
    for depth, words in [(190, "valid number"), (210, "JSON")]:  # as documented: 200
        content = b'{"prompt": [1], "logit_bias": {"1": %s%s}}' % (b"[" * depth, b"]" * depth)
        response = tight.client.post("/generate", content=content)
        assert response.status_code == 400 and words in response.json()["error"]["message"]
    response = tight.client.post("/v1/completions", json={"prompt": ["a"] * 1025, "max_tokens": 1})
    assert response.status_code in (400, 413) and response.json()["error"]["message"]
    response = tight.client.post("/v1/completions", json={"prompt": ["a"] * 30, "max_tokens": 1})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "prompt", "to come back would not help"
    assert "30 completions" in error["message"] and "at most 4 may wait (max_waiting)" in error["message"]
    assert_idle(tight.engine)


def test_tokens_that_wait_are_bounded() -> None:
    for running in serve(fake_service(build_engine(max_waiting_tokens=50, max_num_seqs=1))):
        response = running.client.post("/v1/completions", json={"prompt": [[1] * 40] * 5, "max_tokens": 20})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert "max_waiting_tokens" in response.json()["error"]["message"]


def test_stop_and_n_are_bounded(tight: Running) -> None:
    for field, value in [
        ("stop", ["a"] * 17), ("stop", ["a" * 1025]), ("n", 129), ("logit_bias", {str(i): 1 for i in range(301)}),
        ("cache_salt", "a" * 513),
    ]:  # fmt: skip
        response = tight.client.post("/generate", json={"prompt": [1], field: value})
        assert response.status_code == 400 and response.json()["error"]["param"] == field


def test_pipelined_requests_and_keep_alive(tight: Running) -> None:
    with raw(tight) as sock:
        sock.sendall(http_post("/generate", {"prompt": [1], "max_tokens": 2}) * 3)
        found = b""
        while found.count(b'"usage"') < 3:
            found += sock.recv(65536)
        assert found.count(b"HTTP/1.1 200 ") == 3


@pytest.fixture
def large() -> Iterator[Running]:
    yield from serve(fake_service(build_engine(), max_body_bytes=16 << 20))


@pytest.mark.parametrize(("path", "size", "status"), [("/generate", 30_000_000, 413), ("/nowhere", 16_000_000, 404)])
def test_a_refusal_arrives_though_the_body_is_still_sent(large: Running, path: str, size: int, status: int) -> None:
    """Also where the connection is closed after the answer."""
    assert send_large(large, path, size).startswith(b"HTTP/1.1 %d " % status)


def test_one_more_than_may_be_open_is_told_so(large: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large.app.state.server, "open_calls", 10**6)
    answer = send_large(large, "/generate", 16_000_000)
    assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after" in answer.lower()


def send_large(running: Running, path: str, size: int) -> bytes:
    with raw(running) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode() + b" " * size)
        return read_to_end(sock)
