"""What the log says of a call: its numbers always, its text only where the server was told to."""

import io
import json
import logging
import sys

import pytest

from jaxserve.llm import LLM
from jaxserve.server import log
from tests.engine.conftest import build_engine
from tests.server.conftest import assert_idle, call_and_leave, fake_service, llm_service, log_lines, serve

PROMPT = "JULIET:\nO Romeo"


@pytest.mark.parametrize("stream", [False, True])
def test_text_where_it_is_asked_for(llm: LLM, stream: bool) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "n": 2, "seed": 1, "ignore_eos": True, "user": "ada"}
    for running in serve(llm_service(llm, log_text=True)):
        with log_lines(2) as found:
            whole = running.client.post("/v1/completions", json=body).json()
            running.client.post("/v1/completions", json=body | {"stream": stream}).read()
        for line in found:
            assert [PROMPT in prompt for prompt in line["prompts"]] == [True]
            assert sorted(line["outputs"]) == sorted(choice["text"] for choice in whole["choices"])
            assert line["user"] == "ada" and line["output_tokens"] == 12


def test_text_is_cut(llm: LLM) -> None:
    for running in serve(llm_service(llm, log_text=True, max_log_len=5)):
        with log_lines(1) as found:
            body = {"messages": [{"role": "user", "content": "word " * 50}], "max_tokens": 20, "ignore_eos": True}
            running.client.post("/v1/chat/completions", json=body)
        (line,) = found
        assert all(len(text) == 5 + len("...") and text.endswith("...") for text in line["prompts"] + line["outputs"])


def test_no_text_otherwise(llm: LLM) -> None:
    for running in serve(llm_service(llm)):
        with log_lines(2) as found:
            body = {"prompt": PROMPT, "max_tokens": 6, "user": "ada"}
            text = running.client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            running.client.post("/v1/completions", json=body | {"temperature": PROMPT})
        told = json.dumps(found)
        assert len(found) == 2 and "JULIET" not in told and text not in told and found[0]["user"] == "ada"


def test_lines_go_where_standard_error_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not to what it was when the log was set up, which may be closed."""
    loggers = [logging.getLogger(name) for name in ("jaxserve", "uvicorn.error", "opentelemetry")]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    try:
        log.set_up("info")
        monkeypatch.setattr(sys, "stderr", second)
        first.close()
        log.logger.info("request", extra={"fields": {"status": 200}})
    finally:
        for one, handlers, propagate, level in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)
    line = json.loads(second.getvalue())
    assert line["event"] == "request" and line["status"] == 200


def test_what_failed_in_mid_stream_is_named() -> None:
    """Its status was 200 already."""
    for running in serve(fake_service(build_engine(max_model_len=20_000, blocks=3000))):
        with log_lines(1) as found:
            body = {"prompt": [1], "max_tokens": 19_000, "ignore_eos": True, "stream": True, "timeout": 0.3}
            assert "504" in running.client.post("/generate", json=body).text
        assert found[0]["status"] == 200 and found[0]["error"] == "DeadlineExceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_is_told_as_499(stream: bool) -> None:
    """In mid-stream, too, though its status was 200 already; in the log and in the metric."""
    for running in serve(fake_service(build_engine(max_model_len=20_000, blocks=3000))):
        with log_lines(1) as found:
            body = {"prompt": [1], "max_tokens": 19_000, "ignore_eos": True, "n": 2, "stream": stream}
            if stream:
                with running.client.stream("POST", "/generate", json=body) as answer:
                    assert answer.status_code == 200 and next(answer.iter_lines()).startswith("data: ")
            else:
                call_and_leave(running, body)
            assert_idle(running.engine)
        (line,) = found
        assert line["status"] == 499 and line["finish_reasons"] == ["abort", "abort"] and "error" not in line
        assert 'route="/generate",status="499"} 1.0' in running.client.get("/metrics").text
