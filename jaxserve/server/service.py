"""What the routes need: an engine's client, the tokenizer, the served model's name and the settings."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from jaxserve.core.errors import InvalidRequest, PromptTooLong, UnknownModel
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import CacheConfig
from jaxserve.core.sequence import Request
from jaxserve.core.server_sections import ServerConfig
from jaxserve.engine.client import EngineClient
from jaxserve.engine.facts import EngineFacts
from jaxserve.server.context import Call
from jaxserve.server.errors import NotAllowed
from jaxserve.server.request_names import RequestNames
from jaxserve.server.schemas.sampling import SamplingFields
from jaxserve.text.prompts import content_of
from jaxserve.text.tokenizer import Tokenizer

LONG_TEXT = 20_000
"""Characters, or tokens, from which on a text is encoded or decoded on a thread: the event loop serves others
meanwhile."""


class MakeRequest(Protocol):
    """`LLM.make_request` is one."""

    def __call__(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str,
        cache_salt: str,
        *,
        tenant: str,
        priority: int | None,
        ttft_slo_s: float | None,
        tpot_slo_s: float | None,
    ) -> Request: ...


@dataclass(frozen=True, slots=True)
class Service:
    client: EngineClient
    make_request: MakeRequest
    tokenizer: Tokenizer | None
    model_name: str
    config: ServerConfig = field(default_factory=ServerConfig)
    cache: CacheConfig | None = None
    """For the labels of `cache_config_info`."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings besides the scheduler's, by name, that a diagnosis looks at."""
    sampling_defaults: Mapping[str, float | int] = field(default_factory=dict[str, float | int])
    """Of the model's generation_config.json, for what a body leaves open."""
    names: RequestNames = field(default_factory=RequestNames)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def facts(self) -> EngineFacts:
        return self.client.facts

    @property
    def max_model_len(self) -> int:
        return self.facts.limits.max_len[0]

    def check_model(self, model: str | None) -> None:
        """Raises UnknownModel unless it is the served one, or none is named."""
        if model is not None and model != self.model_name:
            raise UnknownModel(model, self.model_name)

    def need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                f"{what} needs a tokenizer and there is none here: send token ids to /generate or /v1/completions",
                "prompt",
            )
        return self.tokenizer

    def shown(self, tokens: Sequence[int]) -> str:
        """Tokens for people: their text, special tokens too; without a tokenizer their ids."""
        if self.tokenizer is None:
            return " ".join(map(str, tokens))
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def request(
        self, tokens: list[int], params: SamplingParams, request_id: str, body: SamplingFields, call: Call
    ) -> Request:
        """One prompt of a body, as the engine takes it.

        Raises:
          InvalidRequest: the body names a tenant that is none. NotAllowed: one that another key is needed for.
        """
        if body.tenant is not None:
            self._take_tenant(body.tenant, call)
        request = self.make_request(
            tokens,
            params,
            request_id,
            body.cache_salt or "",
            tenant=call.tenant,
            priority=body.priority,
            ttft_slo_s=body.ttft_slo_s,
            tpot_slo_s=body.tpot_slo_s,
        )
        if call.owner is not None:
            request = replace(request, owner=call.owner)
        allowed = self.facts.tenants[call.tenant].allowed_priority(body.priority)
        if body.priority is not None and allowed != body.priority:
            call.priorities = body.priority, allowed
        call.received_s = call.received_s or time.monotonic()
        return request

    def check_count(self, requests: Sequence[Request]) -> None:
        """Raises InvalidRequest for more completions in a body than may ever wait: retrying cannot succeed."""
        count = sum(request.params.n for request in requests)
        most, limit = self.facts.most_waiting_of(requests[0].tenant)
        if count > most:
            asked = f"{count} completions in one request, and at most {most} may wait ({limit})"
            raise InvalidRequest(f"prompt: {asked}: send several requests", "prompt")

    def _take_tenant(self, named: str, call: Call) -> None:
        """The tenant that a body names becomes the call's, unless something stronger has said who asks."""
        if call.tenant_by is not None:
            if named != call.tenant:
                raise NotAllowed(f"tenant: {call.tenant_by} is of {call.tenant!r}: leave tenant out", "tenant")
            return
        known = [tenant.name for tenant in self.facts.tenants]
        if named not in known:
            raise InvalidRequest(
                f"tenant: nobody is called {named[:80]!r}; known: {', '.join(sorted(known))}", "tenant"
            )
        call.tenant = named

    async def encode(
        self, prompt: str | list[int], add_special_tokens: bool = True, keep_last: int | None = None
    ) -> list[int]:
        """Token ids of a prompt, the last `keep_last` of them; a text that cannot fit is refused before it is read."""
        if not isinstance(prompt, str):
            return prompt if keep_last is None else prompt[-keep_last:]
        content_of(prompt)  # refuses an empty one
        tokenizer = self.need_tokenizer("a text prompt")
        at_least = len(prompt) // tokenizer.max_token_chars
        if at_least > self.max_model_len and keep_last is None:
            raise PromptTooLong(at_least, self.max_model_len - 1, self.facts.limits.max_len[1])
        if len(prompt) < LONG_TEXT:
            tokens = tokenizer.encode(prompt, add_special_tokens)
        else:
            tokens = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens)
        return tokens if keep_last is None else tokens[-keep_last:]
