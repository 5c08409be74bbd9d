"""The bytes that load testers parse, tool by tool: each line here has a client that breaks without it."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running

CHAT = {"messages": [{"role": "user", "content": "Speak."}], "max_tokens": 5, "temperature": 0, "ignore_eos": True}
TEXT = {"prompt": "ROMEO:\n", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT), ("/generate", TEXT)]


def stream(running: Running, path: str, body: dict[str, Any]) -> list[Any]:
    """The payloads, after a check of every byte around them."""
    response = running.client.post(path, json=body | {"stream": True})
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert rest == "" and last == "data: [DONE]"
    # LLMPerf strips six bytes a line and parses the rest: no comments, no event names, no keep-alives
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_one_event_a_token(embedded: Running, path: str, body: dict[str, Any]) -> None:
    """vllm bench serve and LLMPerf count events as tokens."""
    events = stream(embedded, path, body)
    assert len(events) == 5 + (path == "/v1/chat/completions")


def test_one_event_a_token_even_without_text(embedded: Running) -> None:
    """Half a character, a special token: the event comes, its text is empty."""
    half = embedded.app.state.service.tokenizer.encode("日", add_special_tokens=False)
    assert len(half) > 1
    events = stream(embedded, "/v1/completions", TEXT | {"logit_bias": {str(half[0]): 100}})
    assert len(events) == 5 and any(event["choices"][0]["text"] == "" for event in events)


def test_the_role_comes_with_the_first_token_and_not_before(embedded: Running) -> None:
    """An early role chunk would be taken for the first token, and TTFT for zero."""
    service = embedded.app.state.service
    host, port = embedded.url.removeprefix("http://").split(":")
    body = json.dumps(CHAT | {"stream": True}).encode()
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        first = b""
        while b"data: " not in first:
            first += raw.recv(65536)
        assert first.count(b"data: ") >= 2, "the role and the first token leave in one write"
    assert service.client.engine is not None


@pytest.mark.parametrize(("path", "body"), PATHS[:2])
def test_usage_only_when_asked(embedded: Running, path: str, body: dict[str, Any]) -> None:
    assert all("usage" not in event for event in stream(embedded, path, body))
    *events, last = stream(embedded, path, body | {"stream_options": {"include_usage": True}})
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 5
    # GuideLLM asks for both
    both = {"include_usage": True, "continuous_usage_stats": True}
    *events, last = stream(embedded, path, body | {"stream_options": both})
    assert [event["usage"]["completion_tokens"] for event in events][-1] == last["usage"]["completion_tokens"] == 5


def test_every_chunk_has_a_choice(embedded: Running) -> None:
    """LLMPerf reads choices[0].delta of every chunk."""
    assert all("delta" in event["choices"][0] for event in stream(embedded, "/v1/chat/completions", CHAT))


def llmperf_reads(running: Running, sampling_params: dict[str, Any]) -> tuple[int, str]:
    """(tokens, text) as LLMPerf's chat client counts and joins them; RuntimeError for an error event."""
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Speak."}]
    body = {"model": "embedded", "messages": messages, "stream": True} | sampling_params
    headers = {"Authorization": "Bearer anything"}
    count, text = 0, ""
    with running.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line.strip():
                continue
            chunk = line.strip()[len("data: ") :]
            if chunk == "[DONE]":
                continue
            count += 1
            data = json.loads(chunk)
            if "error" in data:
                raise RuntimeError(data["error"]["message"], data["error"]["code"])
            text += data["choices"][0]["delta"].get("content") or ""
    return count, text


def test_what_llmperf_sends_and_reads(embedded: Running) -> None:
    asked = {"max_tokens": 7, "temperature": 0, "ignore_eos": True}
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Speak."}]
    whole = embedded.client.post("/v1/chat/completions", json={"messages": messages} | asked).json()
    count, text = llmperf_reads(embedded, asked)
    assert text == whole["choices"][0]["message"]["content"] and count == 7 + 1, "the role's chunk counts as one"
    with pytest.raises(RuntimeError, match=r"0\.2 s"):
        llmperf_reads(embedded, {"max_tokens": 900, "ignore_eos": True, "timeout": 0.2})


def test_objects_are_named_as_aiperf_expects(embedded: Running) -> None:
    assert {event["object"] for event in stream(embedded, "/v1/chat/completions", CHAT)} == {"chat.completion.chunk"}
    assert embedded.client.post("/v1/chat/completions", json=CHAT).json()["object"] == "chat.completion"
    assert {event["object"] for event in stream(embedded, "/v1/completions", TEXT)} == {"text_completion"}
    done = embedded.client.post("/v1/chat/completions", json=CHAT | {"min_tokens": 5, "ignore_eos": False}).json()
    assert done["usage"]["completion_tokens"] == 5


def test_what_guidellm_sends(embedded: Running) -> None:
    assert embedded.client.get("/health").status_code == 200
    assert embedded.client.get("/v1/models").json()["data"][0]["id"] == "embedded"
    for limit in ("max_tokens", "max_completion_tokens"):
        sent = {key: value for key, value in CHAT.items() if key != "max_tokens"}
        sent |= {limit: 3, "stop": None, "stream_options": {"include_usage": True}}
        assert stream(embedded, "/v1/chat/completions", sent)[-1]["usage"]["completion_tokens"] == 3


def test_errors_in_mid_stream_are_an_event(embedded: Running) -> None:
    events = stream(embedded, "/v1/completions", TEXT | {"max_tokens": 900, "timeout": 0.2})
    assert len(events) > 1 and events[0]["choices"]
    error = events[-1]["error"]
    assert error["code"] == 504 and error["type"] == "timeout_error" and "0.2 s" in error["message"]


def test_a_refusal_of_a_stream_has_a_status(embedded: Running) -> None:
    """LLMPerf reads error.message and error.code."""
    for path, body in PATHS:
        response = embedded.client.post(path, json=body | {"stream": True, "max_tokens": 5000})
        error = response.json()["error"]
        assert response.status_code == 400 == error["code"] and error["message"] and error["param"] == "max_tokens"


def test_request_ids_go_in_and_out(embedded: Running) -> None:
    given = embedded.client.post("/v1/completions", json=TEXT, headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = {embedded.client.get("/v1/models").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    bad = embedded.client.get("/v1/models", headers={"X-Request-Id": "a b" * 100}).headers["x-request-id"]
    assert bad.startswith("req-")


def test_tokenize_and_back(embedded: Running) -> None:
    answer = embedded.client.post("/tokenize", json={"prompt": "ROMEO: 日", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 1024
    assert "bytes:" in "".join(answer["token_strs"])
    back = embedded.client.post("/detokenize", json={"tokens": answer["tokens"][1:]}).json()
    assert back == {"prompt": "ROMEO: 日"}
    many = embedded.client.post("/detokenize", json={"tokens": answer["tokens"][1:] * 4000}).json()
    assert many == {"prompt": "ROMEO: 日" * 4000}
    chat = embedded.client.post("/tokenize", json={"messages": CHAT["messages"]}).json()["tokens"]
    whole = embedded.client.post("/v1/chat/completions", json=CHAT | {"return_token_ids": True}).json()
    assert chat == whole["prompt_token_ids"]
    for path, body, param in [
        ("/detokenize", {"tokens": [5000]}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
    ]:
        response = embedded.client.post(path, json=body)
        assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_what_lm_eval_asks_to_tokenize_here(embedded: Running) -> None:
    """`tokenizer_backend=auto`: with these three it needs no tokenizer of its own."""
    info = embedded.client.get("/tokenizer_info").json()
    for name in ("eos_token", "bos_token"):
        body = {"prompt": info[name], "add_special_tokens": False}
        assert len(embedded.client.post("/tokenize", json=body).json()["tokens"]) == 1
    assert "messages" in info["chat_template"]


def test_ready_version_and_health(embedded: Running) -> None:
    assert embedded.client.get("/ready").json() == {"status": "ready"}
    assert embedded.client.get("/version").json()["version"]
    assert isinstance(embedded.client.get("/health").json()["status"], str)


def test_half_a_character_in_json_is_refused(embedded: Running) -> None:
    response = httpx.post(f"{embedded.url}/v1/completions", content=b'{"prompt": "\\ud800"}')
    assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]
