"""`POST /v1/chat/completions`: a conversation through the model's template, and the answer as a message.

In a stream a choice begins with the role, in an event of its own that leaves together with the first token's, never
before it; then comes one event a token, the last with the finish_reason.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server.body import read_body
from jaxserve.server.context import Call
from jaxserve.server.generation import Job, respond
from jaxserve.server.openai_answer import OpenAIAnswer, begin
from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.service import Service


async def chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body = ChatBody.parse(await read_body(request))
    return await respond(request, service, await job_of(service, body, request.state.call), bool(body.stream))


async def job_of(service: Service, body: ChatBody, call: Call) -> Job:
    """Raises InvalidRequest, UnknownModel."""
    params, timeout_s = begin(service, body, call)
    tokenizer = service.need_tokenizer("chat")
    text = tokenizer.render_chat(body.conversation(), **body.template_options())
    tokens = await service.encode(text, bool(body.add_special_tokens), body.truncate_prompt_tokens)
    wanted = service.request(tokens, params, f"chatcmpl-{uuid.uuid4().hex}", body, call)
    return Job([wanted], ChatAnswer(service, body, wanted), timeout_s, wanted.id)


class ChatAnswer(OpenAIAnswer):
    def __init__(self, service: Service, body: ChatBody, wanted: EngineRequest) -> None:
        super().__init__(service, body, [wanted], wanted.id, "chat.completion.chunk")
        self._body, self._wanted = body, wanted
        self._begun: set[int] = set()

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        (output,) = outputs
        answer = self._head | {
            "object": "chat.completion",
            "choices": [self._whole_choice(output, i) for i in range(self._wanted.params.n)],
            "usage": self._usage.of_whole(outputs),
        }
        if self._body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = self._format.prompt(output.prompt_logprobs or [])
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
                payloads.append(self._event(_choice(output.index, {"role": "assistant", "content": ""})))
            payloads.append(self._event(self._token(output)))
        return payloads

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

    def _token(self, output: SequenceOutput) -> dict[str, Any]:
        choice = _choice(output.index, {"content": output.text})
        if self._body.logprobs:
            choice["logprobs"] = self._format.chat(output.logprobs)
        if output.finish_reason is not None:
            choice |= {"finish_reason": output.finish_reason, "stop_reason": output.stop_reason}
        if self._body.return_token_ids:
            choice["token_ids"] = output.tokens
        return choice


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    """Of an event; what follows the last token apart."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
