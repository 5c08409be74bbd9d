"""`POST /v1/chat/completions`: a conversation through the model's template, and the answer as a message.

In a stream a choice begins with the role, in an event of its own that leaves together with the first token's, never
before it; then comes one event a token, the last with the finish_reason.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import pydantic_core
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server.body import read_body
from jaxserve.server.completions import prompt_logprobs
from jaxserve.server.context import Call
from jaxserve.server.generation import Job, respond
from jaxserve.server.logprobs import LogprobsFormat
from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.service import Service
from jaxserve.server.usage import StreamUsage, Usage


async def chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body = ChatBody.parse(await read_body(request))
    return await respond(request, service, await job_of(service, body, request.state.call), bool(body.stream))


async def job_of(service: Service, body: ChatBody, call: Call) -> Job:
    """Raises InvalidRequest, UnknownModel."""
    service.check_model(body.model)
    params = body.sampling()
    timeout_s = body.check_timeout(service.config.request_timeout_s)
    tokenizer = service.need_tokenizer("chat")
    text = tokenizer.render_chat(body.conversation(), **body.template_options())
    tokens = await service.encode(text, bool(body.add_special_tokens))
    if body.truncate_prompt_tokens is not None:
        tokens = tokens[-body.truncate_prompt_tokens :]
    wanted = service.request(tokens, params, f"chatcmpl-{uuid.uuid4().hex}", body, call)
    return Job([wanted], ChatAnswer(service, body, wanted), timeout_s, wanted.id)


class ChatAnswer:
    def __init__(self, service: Service, body: ChatBody, wanted: EngineRequest) -> None:
        self._body, self._wanted = body, wanted
        self._id, self._created, self._model = wanted.id, int(time.time()), service.model_name
        self._chunk = {"id": wanted.id, "object": "chat.completion.chunk", "created": self._created,
                       "model": service.model_name}  # fmt: skip
        self._usage = Usage([wanted])
        self._streamed = StreamUsage(body.stream_options, self._usage)
        self._format = LogprobsFormat(service.tokenizer, bool(body.return_tokens_as_token_ids))
        self._begun: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        (output,) = outputs
        answer = self._chunk | {
            "object": "chat.completion",
            "choices": [self._whole_choice(output, i) for i in range(self._wanted.params.n)],
            "usage": self._usage.of_whole(outputs),
        }
        if self._body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(self._format, output.prompt_logprobs or [])
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = output.prompt_token_ids
        return answer

    def events(self, outputs: Sequence[SequenceOutput]) -> list[bytes]:
        payloads: list[bytes] = []
        for output in outputs:
            if self._streamed.counts:
                self._usage.count(output)
            if not output.tokens and output.finish_reason is None:
                continue  # the prompt's scores, which a stream of chat has no place for
            if output.index not in self._begun:
                self._begun.add(output.index)
                payloads.append(self._event(output.index, {"role": "assistant", "content": ""}))
            payloads.append(self._token_event(output))
        return payloads

    def last_events(self) -> list[bytes]:
        if not self._streamed.last:
            return []
        return [pydantic_core.to_json(self._chunk | {"choices": [], "usage": self._usage.body()})]

    def _whole_choice(self, output: RequestOutput, index: int) -> dict[str, Any]:
        completion = output.outputs[index]
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None if completion.logprobs is None else self._format.chat(completion.logprobs),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        return choice | ({"token_ids": completion.token_ids} if self._body.return_token_ids else {})

    def _token_event(self, output: SequenceOutput) -> bytes:
        more: dict[str, Any] = {"stop_reason": output.stop_reason} if output.finish_reason is not None else {}
        if self._body.return_token_ids:
            more["token_ids"] = output.tokens
        logprobs = self._format.chat(output.logprobs) if self._body.logprobs else None
        return self._event(output.index, {"content": output.text}, logprobs, output.finish_reason, more)

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = self._chunk | {"choices": [choice | (more or {})]} | self._streamed.field()
        return pydantic_core.to_json(chunk)
