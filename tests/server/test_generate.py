"""`POST /generate` as clients see it: answers, streams, refusals, and what happens when they leave."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.engine.conftest import build_engine
from tests.engine.test_equivalence import expected
from tests.server.conftest import PATIENCE_S, Running, assert_idle, call_and_leave, fake_service, serve


def events(response: httpx.Response) -> list:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line != "data: [DONE]" else None for line in lines]


def test_an_answer(running: Running) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": 6, "temperature": 0, "seed": 0, "request_id": "mine"}
    answer = running.client.post("/generate", json=body).json()
    assert answer["id"] == "mine" and answer["model"] == "fake"
    (choice,) = answer["choices"]
    assert choice["token_ids"] == expected([1, 2, 3], 6) and choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 3 and answer["usage"]["total_tokens"] == 9


def test_without_a_tokenizer_token_ids_come_and_go() -> None:
    """`skip_tokenizer_init`: what needs text says so, everything else works."""
    service = replace(fake_service(build_engine()), tokenizer=None)
    ids = {"prompt": [1, 2, 3], "max_tokens": 6, "temperature": 0, "seed": 0}
    for running in serve(service):
        post = running.client.post
        (choice,) = post("/generate", json=ids).json()["choices"]
        assert choice["token_ids"] == expected([1, 2, 3], 6) and choice["text"] == ""
        *pieces, _ = events(post("/generate", json=ids | {"stream": True}))
        assert [token for piece in pieces for token in piece["token_ids"]] == expected([1, 2, 3], 6)
        answer = post("/v1/completions", json=ids | {"return_token_ids": True, "logprobs": 1}).json()
        (choice,) = answer["choices"]
        assert choice["token_ids"] == expected([1, 2, 3], 6) and choice["text"] == ""
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
        messages = {"messages": [{"role": "user", "content": "x"}]}
        for path, body in [
            ("/generate", ids | {"prompt": "text"}), ("/generate", ids | {"stop": "x"}), ("/tokenize", {"prompt": "x"}),
            ("/v1/completions", {"prompt": "text"}), ("/v1/completions", ids | {"echo": True}),
            ("/v1/chat/completions", messages), ("/detokenize", {"tokens": [1]}),
        ]:  # fmt: skip
            refused = post(path, json=body)
            assert refused.status_code == 400 and "tokenizer" in refused.json()["error"]["message"], (path, body)


def test_several_completions(running: Running) -> None:
    answer = running.client.post("/generate", json={"prompt": [4], "n": 3, "seed": 7, "max_tokens": 4}).json()
    assert [c["token_ids"] for c in answer["choices"]] == [expected([4], 4, 7 + i) for i in range(3)]


def test_a_stream_is_the_whole(running: Running) -> None:
    body = {"prompt": [5, 6], "max_tokens": 9, "seed": 0, "stream": True}
    response = running.client.post("/generate", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, done = events(response)
    assert done is None
    assert [token for piece in pieces for token in piece["token_ids"]] == expected([5, 6], 9)
    assert [piece["finish_reason"] for piece in pieces] == [None] * 8 + ["length"]


def test_events_that_are_ready_together_leave_in_one_write(running: Running) -> None:
    """A client that reads slowly costs writes when it reads, not one a token."""
    writes: list[bytes] = []

    async def call() -> None:
        body = json.dumps({"prompt": [7], "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
        received = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            message = next(received, None)
            return message if message is not None else await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                writes.append(message["body"])
                while running.engine.scheduler.num_running:
                    await asyncio.sleep(0.005)

        scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate", "headers": [],
                 "query_string": b"", "scheme": "http", "root_path": "", "http_version": "1.1"}  # fmt: skip
        await running.app(scope, receive, send)

    asyncio.run_coroutine_threadsafe(call(), running.app.state.service.client._thread._loop).result(PATIENCE_S)
    assert b"".join(writes).count(b"data: {") == 200 and len(writes) <= 4


def test_many_at_once(running: Running) -> None:
    def one(i: int) -> list[int]:
        body = {"prompt": [i, i], "max_tokens": 5, "seed": 0, "stream": i % 2 == 0}
        response = running.client.post("/generate", json=body)
        if i % 2:
            return response.json()["choices"][0]["token_ids"]
        return [token for piece in events(response)[:-1] for token in piece["token_ids"]]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == [expected([i, i], 5) for i in range(12)]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "prompt"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "prompt", "one of"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": []}, "prompt", "no tokens"),
        ({"prompt": [1, "a"]}, "prompt", "token ids"),
        ({"prompt": [1, 97]}, "prompt", "0 to 96"),
        ({"prompt": [1.5]}, "prompt", "token ids"),
        ({"prompt": 5}, "prompt", "text"),
        ({"prompt_token_ids": "abc"}, "prompt_token_ids", "token ids"),
        ({"prompt": "a", "max_tokens": 30_000}, "max_tokens", "max_model_len"),
        ({"prompt": "a", "temperature": -1}, "temperature", "0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "number"),
        ({"prompt": "a", "top_p": 0}, "top_p", "above 0"),
        ({"prompt": "a", "n": 0}, "n", "from 1"),
        ({"prompt": "a", "stop": 5}, "stop", "string"),
        ({"prompt": "a", "stop": ["x"]}, "stop", "tokenizer"),
        ({"prompt": "a", "stop_token_ids": 5}, "stop_token_ids", "list"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"prompt": "a", "logit_bias": {"500": 1}}, "logit_bias", "0 to 96"),
        ({"prompt": "a", "stream": "yes"}, "stream", "boolean"),
        ({"prompt": "a", "ignore_eos": 1}, "ignore_eos", "boolean"),
        ({"prompt": "a", "temprature": 1}, "temprature", "unknown field"),
        ([1, 2], None, "object"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(running: Running, body, param: str | None, words: str) -> None:
    for stream in (False, True):
        sent = {**body, "stream": True} if stream and isinstance(body, dict) and "stream" not in body else body
        response = running.client.post("/generate", json=sent)
        error = response.json()["error"]
        assert response.status_code == error["code"] == 400
        assert error["param"] == param and words in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"prompt": "a", "temperature": NaN}', b"[" * 3000])
def test_what_is_no_json(running: Running, raw: bytes) -> None:
    response = running.client.post("/generate", content=raw)
    assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]


def test_a_body_over_the_limit(running: Running) -> None:
    def chunks():
        for _ in range(100):
            yield b"x" * 100

    for content in (b"x" * 5000, chunks()):
        response = running.client.post("/generate", content=content)
        assert response.status_code == 413 and "max_body_bytes" in response.json()["error"]["message"]


def test_more_completions_than_may_ever_wait_are_refused_for_good(running: Running) -> None:
    """No 429: to come back later would not help. (A queue that is full now: test_limits.)"""
    response = running.client.post("/generate", json={"prompt": [1], "n": 21})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "n" and "max_waiting (20)" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(running: Running, stream: bool) -> None:
    body = {"prompt": [1] * 50, "max_tokens": 19_000, "stream": stream}
    if stream:
        with running.client.stream("POST", "/generate", json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
    else:
        call_and_leave(running, body)
    assert_idle(running.engine)


def test_health_models_and_unknown_routes(running: Running) -> None:
    assert running.client.get("/health").json() == {"status": "ok"}
    (card,) = running.client.get("/v1/models").json()["data"]
    assert card["id"] == "fake" and card["object"] == "model" and card["max_model_len"] == 20_000
    for path, status in [("/v1/embeddings", 404), ("/generate", 405)]:
        error = running.client.get(path).json()["error"]
        assert error["code"] == status and f"no GET {path} here: /openapi.json" in error["message"]
