"""The `openai` package, unmodified, against the embedded model: what it parses is what the engine made."""

import asyncio
import re
import sys
from pathlib import Path

import openai
import pytest

from jaxserve.core.errors import EmptyPrompt
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from tests.server.conftest import Running, assert_idle, log_lines

PROMPT = "ROMEO:\nBut soft, what"
ROOT = Path(__file__).parent.parent.parent
CHAT = [{"role": "system", "content": "Speak in verse."}, {"role": "user", "content": "Who art thou?"}]


@pytest.fixture(scope="module")
def client(embedded: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").id == "embedded"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_a_completion_is_the_engines(client: openai.OpenAI, llm: LLM) -> None:
    done = client.completions.create(model="embedded", prompt=PROMPT, max_tokens=12, temperature=0)
    again = client.completions.create(
        model="embedded", prompt=llm.tokenizer.encode(PROMPT), max_tokens=12, temperature=0, extra_body={"top_k": 5}
    )
    assert done.object == "text_completion" and done.choices[0].finish_reason == "length"
    assert done.choices[0].text == again.choices[0].text != ""
    assert done.usage.prompt_tokens == len(llm.tokenizer.encode(PROMPT)) and done.usage.completion_tokens == 12


def test_streams_join_to_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "prompt": PROMPT, "max_tokens": 16, "temperature": 0.9, "seed": 3}
    whole = client.completions.create(**asked).choices[0]
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert "".join(piece.choices[0].text for piece in pieces) == whole.text
    assert len(pieces) == last.usage.completion_tokens and last.choices == []
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, whole.finish_reason]
    assert all(piece.usage is None for piece in pieces)


def test_chat_streams_join_to_the_whole(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "messages": CHAT, "max_tokens": 16, "temperature": 0.9, "seed": 3}
    whole = client.chat.completions.create(**asked)
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
    first, *rest = client.chat.completions.create(**asked, stream=True)
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == first.id for chunk in rest)
    assert "".join(chunk.choices[0].delta.content for chunk in rest) == whole.choices[0].message.content
    assert rest[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_helper_that_accumulates_a_stream(client: openai.OpenAI) -> None:
    """`chat.completions.stream`, the client's own accumulator, with log-probabilities and two choices."""
    ends = {"logit_bias": {"1": 100}, "extra_body": {"min_tokens": 5}}  # the helper takes no answer cut by its length
    asked = {"model": "embedded", "messages": CHAT, "max_tokens": 9, "seed": 1, "n": 2, "logprobs": True, **ends}
    with client.chat.completions.stream(**asked, top_logprobs=2) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked, top_logprobs=2)
    for streamed, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed.message.content == choice.message.content and streamed.finish_reason == choice.finish_reason
        assert [e.token for e in streamed.logprobs.content] == [e.token for e in choice.logprobs.content]
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_asynchronous_clients_at_once(embedded: Running) -> None:
    async def one(client: openai.AsyncOpenAI, i: int) -> str:
        asked = {"model": "embedded", "prompt": f"{PROMPT} {i}", "max_tokens": 8, "temperature": 0, "seed": 0}
        whole = await client.completions.create(**asked)
        pieces = [piece async for piece in await client.completions.create(**asked, stream=True)]
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        return whole.choices[0].text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(12)))

    assert all(asyncio.run(all_of_them()))


def test_several_prompts_and_completions(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "JULIET:\n"]
    done = client.completions.create(model="embedded", prompt=prompts, n=2, max_tokens=5, seed=4)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model="embedded", prompt="JULIET:\n", n=2, max_tokens=5, seed=4)
    assert [choice.text for choice in done.choices[2:]] == [choice.text for choice in alone.choices]
    pieces: dict[int, str] = {}
    for chunk in client.completions.create(model="embedded", prompt=prompts, n=2, max_tokens=5, seed=4, stream=True):
        pieces[chunk.choices[0].index] = pieces.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert [pieces[i] for i in range(4)] == [choice.text for choice in done.choices]


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 2}
    (choice,) = client.completions.create(**asked).choices
    known = choice.logprobs
    assert "".join(known.tokens) == choice.text and len(known.token_logprobs) == 4
    assert known.text_offset == [sum(map(len, known.tokens[:i])) for i in range(4)]
    for token, logprob, top in zip(known.tokens, known.token_logprobs, known.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values()) and len(top) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(client: openai.OpenAI, llm: LLM, stream: bool) -> None:
    """What evaluation harnesses do for log-likelihoods, against the teacher-forced truth of the same engine."""
    tokens = llm.tokenizer.encode(PROMPT)
    asked = {"model": "embedded", "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    answer = client.completions.create(**asked, stream=stream)
    (choice,) = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert choice.text.startswith(PROMPT)
    assert len(choice.logprobs.tokens) == len(tokens) + 1
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    truth = llm_scores(client, tokens)
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(truth, abs=1e-4)


def llm_scores(client: openai.OpenAI, tokens: list[int]) -> list[float]:
    """Each prompt token's log-probability, generated: a bias forces it, and raw log-probabilities ignore the bias."""
    found: list[float] = []
    for i in range(1, len(tokens)):
        done = client.completions.create(
            model="embedded", prompt=tokens[:i], max_tokens=1, logprobs=0, logit_bias={str(tokens[i]): 100}
        )
        found.append(done.choices[0].logprobs.token_logprobs[0])
    return found


def test_scoring_only(client: openai.OpenAI) -> None:
    done = client.completions.create(model="embedded", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert done.choices[0].text == PROMPT and done.usage.completion_tokens == 0
    assert len(done.choices[0].logprobs.token_logprobs) == done.usage.prompt_tokens


def test_stop_strings_and_ends(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    (choice,) = client.completions.create(**asked, stop=[stop]).choices
    assert choice.text == text[: text.find(stop)] and choice.finish_reason == "stop"
    assert choice.model_extra["stop_reason"] == stop
    streamed = [chunk.choices[0] for chunk in client.completions.create(**asked, stop=stop, stream=True)]
    assert "".join(piece.text for piece in streamed) == choice.text and streamed[-1].finish_reason == "stop"
    token = (
        client.completions.create(**asked, extra_body={"return_token_ids": True}).choices[0].model_extra["token_ids"]
    )
    ended = client.completions.create(**asked, extra_body={"stop_token_ids": [token[3]], "ignore_eos": True})
    assert ended.usage.completion_tokens == token.index(token[3]) + 1 and ended.choices[0].finish_reason == "stop"


def test_continuing_the_last_message(client: openai.OpenAI, llm: LLM) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "I am the"}]
    done = client.chat.completions.create(
        model="embedded", messages=begun, max_tokens=4, temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True},
    )  # fmt: skip
    text = llm.tokenizer.render_chat(begun, add_generation_prompt=False, continue_final_message=True)
    tokens = llm.tokenizer.encode(text, add_special_tokens=False)
    assert done.model_extra["prompt_token_ids"] == tokens and text.endswith("I am the")
    direct = client.completions.create(model="embedded", prompt=tokens, max_tokens=4, temperature=0)
    assert done.choices[0].message.content == direct.choices[0].text


@pytest.mark.parametrize("length", [100, 6000])
def test_only_the_end_of_a_prompt(client: openai.OpenAI, llm: LLM, length: int) -> None:
    """Also of one that is longer than the model's length, as text and as token ids."""
    text = "word " * length + "ROMEO:"
    tokens = llm.tokenizer.encode(text)
    asked = {"model": "embedded", "max_tokens": 3, "temperature": 0}
    end = client.completions.create(prompt=tokens[-7:], **asked).choices[0].text
    for prompt in (text, tokens):
        done = client.completions.create(prompt=prompt, **asked, extra_body={"truncate_prompt_tokens": 7})
        assert done.choices[0].text == end and done.usage.prompt_tokens == 7
    chat = [{"role": "user", "content": text}]
    done = client.chat.completions.create(messages=chat, **asked, extra_body={"truncate_prompt_tokens": 7})
    assert done.usage.prompt_tokens == 7


def test_content_in_parts_and_a_message_fed_back(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who art"}, {"type": "text", "text": "thou?"}]}]
    asked = {"model": "embedded", "max_tokens": 4, "temperature": 0}
    done = client.chat.completions.create(messages=parts, **asked)
    plain = client.chat.completions.create(messages=[{"role": "user", "content": "Who art\nthou?"}], **asked)
    assert done.choices[0].message == plain.choices[0].message
    turn = [*parts, done.choices[0].message.model_dump(), {"role": "user", "content": "And then?"}]
    assert client.chat.completions.create(messages=turn, **asked).choices[0].message.content is not None


def test_an_empty_text_is_no_prompt(client: openai.OpenAI, llm: LLM) -> None:
    """Though this tokenizer, which begins every text with a token, could make one of it."""
    assert llm.tokenizer is not None and llm.tokenizer.encode("")
    with pytest.raises(openai.BadRequestError, match="give text, or at least one token id"):
        client.completions.create(model="embedded", prompt="")
    with pytest.raises(EmptyPrompt):
        llm.generate(["ROMEO:", ""])


def test_errors_have_the_clients_own_types(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "messages": CHAT}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="template refuses"):
        client.chat.completions.create(model="embedded", messages=[{"role": "wizard", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="max_model_len"):
        client.completions.create(model="embedded", prompt="word " * 3000)


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"extra_body": {"guided_json": {"type": "object"}}},
        {"extra_body": {"structured_outputs": {"regex": "a"}}},
        {"functions": [{"name": "f"}]},
        {"audio": {"voice": "alloy", "format": "mp3"}},
        {"modalities": ["audio"]},
        {"reasoning_effort": "low"},
        {"store": True},
        {"service_tier": "flex"},
        {"metadata": {"a": "b"}},
        {"extra_body": {"best_of": 3}},
        {"extra_body": {"no_such_field": 1}},
        {"extra_body": {"chat_template_kwargs": {"messages": []}}},
        {"extra_body": {"chat_template_kwargs": {"add_generation_prompt": False}}},
        {"extra_body": {"chat_template_kwargs": {"self": 1}}},
        {"top_logprobs": 2},
        {"top_logprobs": 21, "logprobs": True},
        {"extra_body": {"prompt_cache_retention": "24h"}},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"stream_options": {"include_usage": True}},
    ],
    ids=lambda asked: next(iter(asked.get("extra_body", asked))),
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, asked: dict) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="embedded", messages=CHAT, **asked)
    assert caught.value.param in (*asked, *asked.get("extra_body", {}), "max_completion_tokens")


def test_a_part_that_is_no_text_is_named(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    with pytest.raises(
        openai.BadRequestError, match=r"messages\.0\.content\.1: only parts of type text are read here, no"
    ):
        client.chat.completions.create(model="embedded", messages=[{"role": "user", "content": parts}])


def test_asking_for_nothing_unusual_is_fine(client: openai.OpenAI) -> None:
    """Fields that clients send with their neutral values."""
    client.chat.completions.create(
        model="embedded", messages=CHAT, max_completion_tokens=2, response_format={"type": "text"}, tool_choice="none",
        store=False, user="somebody", service_tier="auto", modalities=["text"], stop=None, tools=[],
        extra_body={"guided_json": None, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 1,
                    "ignore_eos": True, "cache_salt": "s", "priority": 0},
    )  # fmt: skip


def test_whom_a_caller_asks_for_is_in_the_log(client: openai.OpenAI) -> None:
    asked = {"model": "embedded", "messages": CHAT, "max_tokens": 1}
    with log_lines(2) as found:
        client.chat.completions.create(**asked, user="old", extra_body={"prompt_cache_key": "k"})
        client.chat.completions.create(**asked, extra_body={"safety_identifier": "new"})
    assert [line["user"] for line in found] == ["old", "new"]


def test_an_empty_list_is_named_by_its_length(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"messages: list should have at least 1 item, not 0$"):
        client.chat.completions.create(model="embedded", messages=[])


def test_leaving_a_stream_frees_the_blocks(client: openai.OpenAI, embedded: Running) -> None:
    stream = client.completions.create(
        model="embedded", prompt=PROMPT, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert_idle(embedded.engine)


def test_the_sampler_is_asked_what_the_body_says(embedded: Running, llm: LLM) -> None:
    """Every sampling field arrives: the same request in-process gives the same tokens."""
    fields = {
        "max_tokens": 10, "min_tokens": 2, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 11,
        "presence_penalty": 0.3, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "ignore_eos": True,
        "logit_bias": {"50": -5.0}, "stop_token_ids": [7], "skip_special_tokens": False,
    }  # fmt: skip
    answer = embedded.client.post("/v1/completions", json={"prompt": PROMPT, "return_token_ids": True, **fields}).json()
    params = SamplingParams(**(fields | {"logit_bias": {50: -5.0}, "stop_token_ids": (7,)}))
    service = embedded.app.state.service

    async def direct() -> list[int]:
        request = llm.make_request(PROMPT, params, "direct")
        return [token async for output in service.client.generate(request) for token in output.tokens]

    assert answer["choices"][0]["token_ids"] == run_on(embedded, direct())


def run_on(running: Running, work):
    """Run a coroutine on the server's own event loop."""
    return asyncio.run_coroutine_threadsafe(work, running.app.state.service.client._thread._loop).result(60)


@pytest.mark.parametrize("where", ["README.md", "examples/openai_stream.py"])
def test_what_a_newcomer_types(embedded: Running, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the README and of the example, as they are, but for the port."""
    text = (ROOT / where).read_text()
    if where.endswith(".md"):
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (text,) = [block for block in blocks if "from openai" in block]
    assert "http://127.0.0.1:8000/v1" in text
    monkeypatch.setattr(sys, "argv", ["openai_stream.py"])
    with log_lines(1) as found:
        exec(compile(text.replace("http://127.0.0.1:8000", embedded.url), where, "exec"), {})
    assert found[0]["path"] == "/v1/chat/completions" and found[0]["status"] == 200 and found[0]["output_tokens"] > 0
