"""`POST /generate`: the engine's own words. In a stream an event is what is new of one choice."""

import uuid
from collections.abc import Sequence
from typing import Any

import pydantic_core
from starlette.requests import Request
from starlette.responses import Response

from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import CompletionOutput, RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server.body import read_body
from jaxserve.server.context import Call
from jaxserve.server.generation import Job, respond
from jaxserve.server.logprobs import finite
from jaxserve.server.schemas.generate import GenerateBody
from jaxserve.server.service import Service
from jaxserve.server.usage import Usage


async def generate(request: Request) -> Response:
    service: Service = request.app.state.service
    body = GenerateBody.parse(await read_body(request))
    params = body.sampling(service.sampling_defaults)
    timeout_s = body.check_timeout(service.config.request_timeout_s)
    tokens = await service.encode(body.the_prompt)
    call: Call = request.state.call
    shown_id = engine_id = body.request_id or f"gen-{uuid.uuid4().hex}"
    if body.request_id is not None and call.tenant_by is not None:  # another tenant may use the same one
        engine_id = f"{call.tenant}/{body.request_id}"
    wanted = service.request(tokens, params, engine_id, body, call)
    job = Job([wanted], GenerateAnswer(wanted, shown_id, service.model_name), timeout_s, shown_id)
    return await respond(request, service, job, bool(body.stream))


class GenerateAnswer:
    """`id`: the request's, as its caller knows it."""

    def __init__(self, wanted: EngineRequest, id: str, model: str) -> None:
        self._wanted, self._id, self._model = wanted, id, model

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        (output,) = outputs
        answer: dict[str, Any] = {
            "id": self._id,
            "model": self._model,
            "choices": [_choice(completion) for completion in output.outputs],
            "usage": Usage([self._wanted]).of_whole(outputs),
        }
        if output.prompt_logprobs is not None:
            answer["prompt_logprobs"] = [None if entry is None else _logprob(entry) for entry in output.prompt_logprobs]
        return answer

    def events(self, outputs: Sequence[SequenceOutput]) -> list[bytes]:
        return [pydantic_core.to_json(_piece(output, self._id)) for output in outputs]

    def last_events(self) -> list[bytes]:
        return []


def _piece(output: SequenceOutput, id: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": id,
        "index": output.index,
        "text": output.text,
        "token_ids": output.tokens,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs:
        event["logprobs"] = [_logprob(entry) for entry in output.logprobs]
    if output.prompt_logprobs:
        event["prompt_logprobs"] = [_logprob(entry) for entry in output.prompt_logprobs]
    return event


def _choice(completion: CompletionOutput) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.logprobs is not None:
        choice["logprobs"] = [_logprob(entry) for entry in completion.logprobs]
    return choice


def _logprob(entry: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": finite(logprob)} for token, logprob in entry.top]
    return {"token_id": entry.token, "logprob": finite(entry.logprob), "rank": entry.rank, "top": top}
