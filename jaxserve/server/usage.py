"""Token counts of an answer, whole or as it streams."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxserve.core.sequence import Request
from jaxserve.engine.collect import RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.server.schemas.sampling import StreamOptions


class Usage:
    """A prompt counts once, however many completions it has."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._prompt = sum(len(request.prompt) for request in requests)
        self._output = 0
        self._cached: dict[str, int] = {}

    def count(self, output: SequenceOutput) -> None:
        self._output += len(output.tokens)
        if output.index == 0 and output.metrics is not None:
            self._cached[output.request_id] = output.metrics.cached_tokens

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._output,
            "total_tokens": self._prompt + self._output,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }

    def of_whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        self._output = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        self._cached = {o.request_id: o.metrics.cached_tokens for o in outputs if o.metrics is not None}
        return self.body()


class StreamUsage:
    """What a stream says of its usage: nothing, a last chunk, or something in every chunk."""

    def __init__(self, options: StreamOptions | None, usage: Usage) -> None:
        self.last = bool(options and options.include_usage)
        self._every = bool(options and options.continuous_usage_stats)
        self._usage = usage

    @property
    def counts(self) -> bool:
        return self.last or self._every

    def field(self) -> dict[str, Any]:
        """A chunk's own part: with include_usage, OpenAI's chunks have a null."""
        if self._every:
            return {"usage": self._usage.body()}
        return {"usage": None} if self.last else {}
