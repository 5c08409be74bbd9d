"""What `/v1/completions` and `/v1/chat/completions` have in common: how a body begins, and what answers share."""

import time
from collections.abc import Sequence
from typing import Any

import pydantic_core

from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.server.context import Call
from jaxserve.server.logprobs import LogprobsFormat
from jaxserve.server.schemas.openai import OpenAIFields
from jaxserve.server.service import Service
from jaxserve.server.usage import StreamUsage, Usage


def begin(service: Service, body: OpenAIFields, call: Call) -> tuple[SamplingParams, float]:
    """(what the sampler is asked, the request's timeout). Raises InvalidRequest, UnknownModel."""
    service.check_model(body.model)
    call.user = body.safety_identifier or body.user
    return body.sampling(service.sampling_defaults), body.check_timeout(service.config.request_timeout_s)


class OpenAIAnswer:
    """The part of an `Answer` that both formats share: the head of every body and event, and the usage."""

    def __init__(
        self, service: Service, body: OpenAIFields, requests: Sequence[EngineRequest], id: str, object: str
    ) -> None:
        self._head = {"id": id, "object": object, "created": int(time.time()), "model": service.model_name}
        self._usage = Usage(requests)
        self._streamed = StreamUsage(body.stream_options, self._usage)
        self._format = LogprobsFormat(service.tokenizer, bool(body.return_tokens_as_token_ids))

    def last_events(self) -> list[bytes]:
        if not self._streamed.last:
            return []
        return [pydantic_core.to_json(self._head | {"choices": [], "usage": self._usage.body()})]

    def _event(self, choice: dict[str, Any]) -> bytes:
        return pydantic_core.to_json(self._head | {"choices": [choice]} | self._streamed.field())
