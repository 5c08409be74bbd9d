"""`jaxserve doctor` against servers over HTTP: a healthy one, one behind a slow way, and what cannot be asked."""

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from jaxserve.cli import main
from jaxserve.commands import doctor
from jaxserve.core.clock import MonotonicClock
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.metrics import diagnosis
from jaxserve.server.keys import Keys
from jaxserve.server.telemetry import CallFact
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, fake_service, serve, wait_for


class SlowWay:
    """A TCP proxy that holds everything back for a while in each direction."""

    def __init__(self, url: str, delay_s: float) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target, self._delay_s = (host, int(port)), delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._both_ways, args=(client,), daemon=True).start()

    def _both_ways(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
            back.start()
            self._carry(client, server)
            back.join()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self._delay_s)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_a_healthy_server_and_the_network(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "LEAST_S", 0.19)  # a call of 50 ms is slow, but not on a machine that runs tests
    for running in serve(fake_service(build_engine())):
        for _ in range(20):
            body = {"prompt_token_ids": [1, 2, 3], "max_tokens": 5}
            assert running.client.post("/generate", json=body).status_code == 200
        assert main(["doctor", running.url]) == 0
        told = capsys.readouterr().out
        assert "nothing is wrong" in told and "now: 0 run, 0 wait\n" in told
        assert "default: 20 requests; TTFT P50 " in told and "objective" not in told
        way = SlowWay(running.url, 0.1)
        for local, cause in ((True, "busy host"), (False, "network")):
            monkeypatch.setattr(doctor, "_is_local", lambda url, local=local: local)
            assert main(["doctor", way.url, "--json"]) == 1
            found = json.loads(capsys.readouterr().out)
            assert [finding["cause"] for finding in found] == [cause] and "ms" in found[0]["evidence"]
        way.close()


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("a.b", False),
    ],
)
def test_which_addresses_are_this_machines_own(host: str, local: bool) -> None:
    assert doctor._is_local(f"http://{host}:8000") is local


def test_refusals_before_the_engine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXSERVE_ADMIN_KEY", "the-admin-key")
    engine = build_engine(tenants=Tenants([Tenant(name="chat"), Tenant(name="batch")]))
    going_on = threading.Event()
    submit = engine.fake.submit

    def slow(plan):
        going_on.wait(PATIENCE_S)
        return submit(plan)

    engine.fake.submit = slow
    service = fake_service(engine, max_open_requests=1)
    for running in serve(service, Keys({"chat-key-1": "chat"}, "the-admin-key")):
        headers, body = {"Authorization": "Bearer chat-key-1"}, {"prompt_token_ids": [1, 2, 3], "max_tokens": 5}
        state = running.app.state.server
        url = running.url
        first = threading.Thread(target=lambda: httpx.post(f"{url}/generate", json=body, headers=headers, timeout=60))  # noqa: B023
        first.start()
        wait_for(lambda: state.open_calls == 1)  # noqa: B023
        assert [running.client.post("/generate", json=body, headers=headers).status_code for _ in range(5)] == [429] * 5
        going_on.set()
        first.join()
        state.drain()
        assert [running.client.post("/generate", json=body, headers=headers).status_code for _ in range(4)] == [503] * 4
        assert main(["doctor", running.url]) == 1
        told = capsys.readouterr().out
        assert "chat: 1 requests" in told
        assert "9 refused (max_open_requests 5, drain 4)" in told, told
        assert "batch" not in told
        assert "refused as max_open_requests: 5 of tenant 'chat' (83% of what came)" in told
        assert "raise max_open_requests (now 1)" in told and "a balancer learns it from /ready" in told
        text = running.client.get("/metrics").text
        assert 'jaxserve_admission_rejections_total{model_name="fake",reason="drain"} 4.0' in text


def test_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    engine = build_engine(clock=MonotonicClock())
    submit, broken = engine.fake.submit, [True] * 3

    def sometimes(plan):
        if broken:
            broken.pop()
            raise RuntimeError("no such device")
        return submit(plan)

    engine.fake.submit = sometimes
    body = {"prompt_token_ids": [1, 2, 3], "max_tokens": 5}
    for running in serve(fake_service(engine)):
        assert [running.client.post("/generate", json=body).status_code for _ in range(5)] == [500] * 3 + [200] * 2
        assert main(["doctor", running.url]) == 1
        told = capsys.readouterr().out
        assert "3 failed (StepFailed 3)" in told and "failures: calls failed with StepFailed: 3 of tenant" in told


def test_it_tells_what_each_tenant_got_and_who_waits_now(capsys: pytest.CaptureFixture[str]) -> None:
    engine = build_engine(clock=MonotonicClock(), tenants=Tenants([Tenant(name="chat", ttft_slo_s=1e-6)]))
    for running in serve(fake_service(engine)):
        for _ in range(12):
            body = {"prompt_token_ids": [1, 2, 3], "max_tokens": 5, "tenant": "chat"}
            assert running.client.post("/generate", json=body).status_code == 200
        assert main(["doctor", running.url]) == 1
        told = capsys.readouterr().out
        assert "chat: 12 requests; TTFT P50 " in told and "objective 1e-06 s: missed by 12; TPOT" in told
        assert (
            "1. none of the known causes: 12 requests (12 of 'chat') were slow" in told
            and "GET /debug/requests/" in told
        )
        live = [{"waits_for": None}, {"waits_for": "order", "age_s": 3.0}, {"waits_for": "budget", "age_s": 2.0}]
        view = {"running": 1, "waiting": 2, "live": live}
        assert doctor._now(view) == "  now: 1 run, 2 wait, the first for 2.0 s, for budget"


def test_of_a_server_that_has_done_nothing_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for running in serve(fake_service(build_engine())):
        assert main(["doctor", running.url]) == 0
        assert "of fewer than 10 requests nothing is said" in capsys.readouterr().out


def test_only_the_calls_of_the_last_minutes_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    for running in serve(fake_service(build_engine())):
        calls = running.app.state.server.telemetry._calls
        calls.append(CallFact(time.monotonic() - 400.0, receive_s=3.0, blocked_s=30.0))
        assert main(["doctor", running.url]) == 0
        calls.append(CallFact(time.monotonic() - 20.0, receive_s=0.25, blocked_s=30.0))
        capsys.readouterr()
        assert main(["doctor", running.url]) == 1
        told = capsys.readouterr().out
        assert "1. network:" in told and "250 ms each on coming in" in told and "30000 ms on readers" in told


def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "http://127.0.0.1:9"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    for running in serve(fake_service(build_engine()), Keys({"chat-key-1": "chat"}, "the-admin-key")):
        assert main(["doctor", running.url]) == 2
        assert "JAXSERVE_ADMIN_KEY" in capsys.readouterr().err
        monkeypatch.setenv("JAXSERVE_ADMIN_KEY", "the-admin-key")
        assert main(["doctor", running.url]) == 0
