"""`POST /v1/completions`: every prompt a request of the engine, every completion a choice.

choices are numbered prompt by prompt: choice p * n + i is completion i of prompt p.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server.body import read_body
from jaxserve.server.context import Call
from jaxserve.server.generation import Job, respond
from jaxserve.server.openai_answer import OpenAIAnswer, begin
from jaxserve.server.schemas.completions import CompletionsBody
from jaxserve.server.service import Service


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = CompletionsBody.parse(await read_body(request))
    return await respond(request, service, await job_of(service, body, request.state.call), bool(body.stream))


async def job_of(service: Service, body: CompletionsBody, call: Call) -> Job:
    """Raises InvalidRequest, UnknownModel."""
    params, timeout_s = begin(service, body, call)
    special = body.add_special_tokens is not False
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    requests: list[EngineRequest] = []
    for i, prompt in enumerate(body.prompts):
        tokens = await service.encode(prompt, special, body.truncate_prompt_tokens)
        requests.append(service.request(tokens, params, f"{completion_id}-{i}", body, call))
    service.check_count(requests)
    answer = CompletionAnswer(service, body, completion_id, requests, params)
    return Job(requests, answer, timeout_s, completion_id)


class CompletionAnswer(OpenAIAnswer):
    def __init__(
        self,
        service: Service,
        body: CompletionsBody,
        id: str,
        requests: Sequence[EngineRequest],
        params: SamplingParams,
    ) -> None:
        super().__init__(service, body, requests, id, "text_completion")
        self._service, self._body, self._params = service, body, params
        self._place = {request.id: i for i, request in enumerate(requests)}
        self._prompts = [request.prompt for request in requests]
        self._begun: dict[int, int] = {}  # choice -> characters that its log-probabilities have covered
        self._scored: dict[str, list[TokenLogprobs]] = {}

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        choices = [self._whole_choice(output, i) for output in outputs for i in range(self._params.n)]
        return self._head | {"choices": choices, "usage": self._usage.of_whole(outputs)}

    def events(self, outputs: Sequence[SequenceOutput]) -> list[bytes]:
        return [self._event(self._piece(output)) for output in outputs if self._tells(output)]

    # --- whole ------------------------------------------------------------------------------------------------

    def _whole_choice(self, output: RequestOutput, index: int) -> dict[str, Any]:
        completion = output.outputs[index]
        tokens, entries = completion.token_ids, list[TokenLogprobs | None](completion.logprobs or [])
        text = completion.text
        if self._body.echo:
            text = self._prompt_text(output.request_id, output.prompt_token_ids) + text
            tokens = output.prompt_token_ids + tokens
            entries = (output.prompt_logprobs or []) + entries
        choice: dict[str, Any] = {
            "index": self._place[output.request_id] * self._params.n + index,
            "text": text,
            "logprobs": None if self._body.logprobs is None else self._format.completion(entries, tokens, 0),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._format.prompt(output.prompt_logprobs or [])
        if self._body.return_token_ids:
            choice |= {"token_ids": completion.token_ids, "prompt_token_ids": output.prompt_token_ids}
        return choice

    def _prompt_text(self, request_id: str, tokens: list[int]) -> str:
        prompt = self._body.prompts[self._place[request_id]]
        if isinstance(prompt, str) and self._body.truncate_prompt_tokens is None:
            return prompt
        return self._service.need_tokenizer("echo of token ids").decode(tokens, self._params.skip_special_tokens)

    # --- streamed ---------------------------------------------------------------------------------------------

    def _tells(self, output: SequenceOutput) -> bool:
        """Scores of a prompt come before its first token: they wait for it, and leave with it."""
        if output.prompt_logprobs:
            self._scored.setdefault(f"{output.request_id}/{output.index}", []).extend(output.prompt_logprobs)
        if self._streamed.counts:
            self._usage.count(output)
        return bool(output.tokens) or output.finish_reason is not None

    def _piece(self, output: SequenceOutput) -> dict[str, Any]:
        index = self._place[output.request_id] * self._params.n + output.index
        first = index not in self._begun
        choice: dict[str, Any] = {
            "index": index,
            "text": output.text,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        tokens, entries = output.tokens, list[TokenLogprobs | None](output.logprobs)
        prompt = list(self._prompts[self._place[output.request_id]]) if first else []
        scored: list[TokenLogprobs | None] = [None, *self._scored.pop(f"{output.request_id}/{output.index}", [])]
        if first and self._body.echo:
            choice["text"] = self._prompt_text(output.request_id, prompt) + output.text
            tokens, entries = prompt + tokens, scored + entries
        if self._body.logprobs is not None:
            found = self._format.completion(entries, tokens, self._begun.get(index, 0))
            choice["logprobs"] = found
        self._begun[index] = self._begun.get(index, 0) + len(choice["text"])
        if first and self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._format.prompt(scored)
        if self._body.return_token_ids:
            choice |= {"token_ids": output.tokens} | ({"prompt_token_ids": prompt} if first else {})
        return choice
