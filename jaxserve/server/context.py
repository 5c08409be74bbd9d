"""One HTTP call: who made it, and what the log will say of it. No prompt's text, unless the server was told to."""

import time
from dataclasses import dataclass, field
from typing import Any

from jaxserve.core.sequence import FinishReason, Request
from jaxserve.engine.outputs import SequenceOutput


class LoggedText:
    """What was said in a call, for the log of a server that is to keep it; each text cut at `most` characters."""

    def __init__(self, prompts: list[str], most: int) -> None:
        self._most = most
        self._prompts = [self._cut(prompt) for prompt in prompts]
        self._outputs: dict[tuple[str, int], str] = {}

    def add(self, output: SequenceOutput) -> None:
        key = output.request_id, output.index
        so_far = self._outputs.get(key, "")
        if len(so_far) <= self._most:
            self._outputs[key] = so_far + output.text

    def fields(self) -> dict[str, Any]:
        """Outputs in the order in which they began."""
        return {"prompts": self._prompts, "outputs": [self._cut(text) for text in self._outputs.values()]}

    def _cut(self, text: str) -> str:
        return text if len(text) <= self._most else text[: self._most] + "..."


@dataclass(slots=True)
class Call:
    request_id: str
    """What came in as X-Request-Id, or was made here; goes out again."""
    tenant: str = "default"
    tenant_by: str | None = None
    """What said who the tenant is, "this API key"; None: nothing did, and the body may."""
    owner: str | None = None
    """The tenant of the batch that it is a line of."""
    admin: bool = False
    local: bool = False
    """Its client is on this machine."""
    began_s: float = field(default_factory=time.monotonic)
    received_s: float | None = None
    """When it was ready for the engine: read, checked and tokenized."""
    blocked_s: float = 0.0
    """How long its answer waited for the client to read."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    """What it asked of the engine."""
    completions: dict[tuple[str, int], SequenceOutput] = field(default_factory=dict)
    """Of each completion that has answered, by request and index, the last output that brought metrics."""
    stream: bool = False
    response_id: str | None = None
    trace_id: str | None = None
    failure: str | None = None
    """The error that its answer told of, by its class."""
    user: str | None = None
    """Whom the caller says that it asks for; for the log."""
    priorities: tuple[int, int] | None = None
    """The priority that the body asked for, and the one that its tenant may have, where they differ."""
    text: LoggedText | None = None

    def count(self, output: SequenceOutput) -> None:
        if output.metrics is not None:
            self.completions[output.request_id, output.index] = output
        self.output_tokens += len(output.tokens)
        if self.first_token_s is None and output.tokens:
            self.first_token_s = time.monotonic()
            if output.metrics is not None:  # as with every output that brings a first token
                self.cached_tokens = output.metrics.cached_tokens
        if self.text is not None:
            self.text.add(output)
        if output.finish_reason is not None:
            self.finish_reasons.append(output.finish_reason)

    def aborted(self) -> None:
        """The client has left: what had not ended never will."""
        wanted = sum(request.params.n for request in self.requests)
        self.finish_reasons += [FinishReason.ABORT] * (wanted - len(self.finish_reasons))

    def log_fields(self, status: int) -> dict[str, Any]:
        """What a log line says of it, now that it has ended."""
        fields: dict[str, Any] = {
            "status": status,
            "duration_s": round(time.monotonic() - self.began_s, 6),
        }
        if self.prompt_tokens:
            fields |= {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "output_tokens": self.output_tokens,
                "ttft_s": None if self.first_token_s is None else round(self.first_token_s - self.began_s, 6),
                "finish_reasons": self.finish_reasons,
            }
        named = {"response_id": self.response_id, "error": self.failure, "trace_id": self.trace_id, "user": self.user}
        fields |= {name: value for name, value in named.items() if value is not None}
        if self.priorities is not None:
            fields |= {"priority_asked": self.priorities[0], "priority": self.priorities[1]}
        return fields if self.text is None else fields | self.text.fields()
