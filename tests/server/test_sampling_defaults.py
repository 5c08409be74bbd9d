"""The model's generation_config.json is the default of what a body leaves open: over HTTP and in Python."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from tests.engine.conftest import build_engine
from tests.server.conftest import Letters, Running, fake_service, serve

DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_tokens": 5}
PROMPT = {"prompt": [1, 2, 3]}
TALK = {"messages": [{"role": "user", "content": "ab"}]}


class Talker(Letters):
    def render_chat(self, messages: list[dict[str, str]], **options: Any) -> str:
        return messages[-1]["content"]


@pytest.fixture(scope="module")
def asked() -> list[SamplingParams]:
    """What the engine was asked, call by call."""
    return []


@pytest.fixture(scope="module")
def client(asked: list[SamplingParams]) -> Iterator[httpx.Client]:
    service = fake_service(build_engine())

    def make_request(prompt: Any, params: SamplingParams, request_id: str, salt: str, **said: Any) -> Any:
        asked.append(params)
        return service.make_request(prompt, params, request_id, salt, **said)

    changed = dataclasses.replace(
        service, make_request=make_request, sampling_defaults=DEFAULTS, tokenizer=Talker()  # type: ignore[arg-type]
    )  # fmt: skip
    for running in serve(changed):
        yield running.client


@pytest.mark.parametrize(
    ("path", "body", "max_tokens"),
    [("/v1/completions", PROMPT, 16), ("/v1/chat/completions", TALK, 5), ("/generate", PROMPT, 5)],
)
def test_defaults_stand_where_a_body_says_nothing(
    client: httpx.Client, asked: list[SamplingParams], path: str, body: dict[str, Any], max_tokens: int
) -> None:
    """max_new_tokens too, but for /v1/completions, whose 16 is OpenAI's own."""
    expected = SamplingParams(**(DEFAULTS | {"max_tokens": max_tokens}))
    assert client.post(path, json=body).status_code == 200 and asked[-1] == expected
    nulls = {"temperature": None, "top_p": None, "top_k": None}
    assert client.post(path, json=body | nulls).status_code == 200 and asked[-1] == expected
    own = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_tokens": 3}
    assert client.post(path, json=body | own).status_code == 200
    assert asked[-1] == SamplingParams(temperature=0.0, max_tokens=3)


def test_generate_takes_all_that_the_length_leaves_when_asked(
    client: httpx.Client, asked: list[SamplingParams]
) -> None:
    assert client.post("/generate", json=PROMPT | {"max_tokens": None}).status_code == 200
    assert asked[-1].max_tokens is None and asked[-1].temperature == 0.7


def test_the_embedded_models_own(embedded: Running, llm: LLM) -> None:
    """Over HTTP as in Python: the same tokens as when they are spelt out."""
    params = llm.get_default_sampling_params()
    assert params == SamplingParams(temperature=0.8, top_p=0.95) and llm.sampling_defaults["top_p"] == 0.95
    body = {"prompt": "ROMEO:\n", "max_tokens": 12, "seed": 4, "ignore_eos": True}
    spelt = body | {"temperature": 0.8, "top_p": 0.95}
    left_open, written = (embedded.client.post("/v1/completions", json=b).json() for b in (body, spelt))
    assert left_open["choices"] == written["choices"]
