"""A step that fails, an engine that cannot go on, a step that hangs: what callers and probes see."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jaxserve.engine.engine import Engine
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Running, assert_idle, fake_service, serve, wait_for

BODY = {"prompt": [1, 2, 3], "max_tokens": 8, "seed": 0}


def running_with(engine: Engine, **settings: Any) -> Iterator[Running]:
    return serve(fake_service(engine, **settings))


@pytest.mark.parametrize("where", ["fail_submit", "fail_wait"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_step_is_a_500_and_the_next_request_is_served(
    where: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine()
    getattr(engine.fake, where).add(20)  # type: ignore[attr-defined]
    begun, submit = threading.Event(), engine.fake.submit  # type: ignore[attr-defined]

    def submit_after_the_first_event(plan: Any) -> Any:
        assert plan.step < 15 or not stream or begun.wait(PATIENCE_S)
        return submit(plan)

    monkeypatch.setattr(engine.fake, "submit", submit_after_the_first_event)  # type: ignore[attr-defined]
    for server in running_with(engine):
        body = BODY | {"stream": stream, "max_tokens": 100}
        if stream:
            with server.client.stream("POST", "/generate", json=body) as response:
                lines = response.iter_lines()
                events = [next(lines)]
                begun.set()
                events += [line for line in lines if line]
            error = json.loads(events[-2].removeprefix("data: "))["error"]
            assert response.status_code == 200 and len(events) > 2 and events[-1] == "data: [DONE]"
        else:
            response = server.client.post("/generate", json=body)
            error = response.json()["error"]
            assert response.status_code == 500
        assert error["code"] == 500 and error["type"] == "internal_server_error" and "step" in error["message"]
        assert server.client.post("/generate", json=BODY).status_code == 200
        assert server.client.get("/health").status_code == 200
        assert engine.fake.resets == 1  # type: ignore[attr-defined]
        assert_idle(engine)


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_not_finite_are_a_500_of_their_request_alone(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine()
    engine.fake.not_finite["bad", 0] = 60  # type: ignore[attr-defined]
    begun, submit = threading.Event(), engine.fake.submit  # type: ignore[attr-defined]

    def submit_after_the_first_event(plan: Any) -> Any:
        assert plan.step < 40 or not stream or begun.wait(PATIENCE_S)
        return submit(plan)

    monkeypatch.setattr(engine.fake, "submit", submit_after_the_first_event)  # type: ignore[attr-defined]
    for server in running_with(engine):
        alone = server.client.post("/generate", json=BODY).json()["choices"]
        body = BODY | {"stream": stream, "request_id": "bad", "max_tokens": 100}
        if stream:
            with server.client.stream("POST", "/generate", json=body) as response:
                lines = response.iter_lines()
                events = [next(lines)]
                begun.set()
                events += [line for line in lines if line]
            assert response.status_code == 200 and events[-1] == "data: [DONE]"
            error = json.loads(events[-2].removeprefix("data: "))["error"]
        else:
            response = server.client.post("/generate", json=body)
            assert response.status_code == 500
            error = response.json()["error"]
        assert error["code"] == 500 and error["type"] == "internal_server_error"
        assert "NonFiniteLogits: the logits of this request are not finite" in error["message"]
        assert server.client.post("/generate", json=BODY).json()["choices"] == alone
        assert 'jaxserve_nonfinite_logits_total{model_name="fake"} 1.0' in server.client.get("/metrics").text
        assert engine.fake.resets == 0  # type: ignore[attr-defined]
        assert_idle(engine)


def test_an_engine_that_cannot_be_rebuilt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine()
    engine.fake.fail_submit.add(2)  # type: ignore[attr-defined]

    def no_reset() -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.fake, "reset", no_reset)  # type: ignore[attr-defined]
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    for server in running_with(engine):
        response = server.client.post("/generate", json=BODY)
        assert response.status_code == 503 and "the device is gone" in response.json()["error"]["message"]
        assert server.client.post("/generate", json=BODY).status_code == 503
        for path in ("/health", "/ready"):
            response = server.client.get(path)
            assert response.status_code == 503 and "the device is gone" in response.json()["status"]


@pytest.mark.slow
def test_a_step_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engine = build_engine()
    release, submit = threading.Event(), engine.fake.submit  # type: ignore[attr-defined]

    def hanging_submit(plan: Any) -> Any:
        release.wait(2 * PATIENCE_S)
        return submit(plan)

    monkeypatch.setattr(engine.fake, "submit", hanging_submit)  # type: ignore[attr-defined]
    logger = logging.getLogger("jaxserve.server")
    logger.addHandler(caplog.handler)
    try:
        for server in running_with(engine, watchdog_s=0.2):
            answers: list[int] = []
            post = threading.Thread(
                target=lambda: answers.append(server.client.post("/generate", json=BODY).status_code)  # noqa: B023
            )
            post.start()
            wait_for(lambda: server.client.get("/health").status_code == 503)  # noqa: B023
            assert "has been running" in server.client.get("/ready").json()["status"]
            assert server.client.post("/generate", json=BODY).status_code == 503
            wait_for(lambda: any("hanging_submit" in str(getattr(r, "fields", "")) for r in caplog.records))
            release.set()
            post.join(PATIENCE_S)
            assert answers == [200] and server.client.get("/health").status_code == 200
    finally:
        logger.removeHandler(caplog.handler)
