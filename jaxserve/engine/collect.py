"""The pieces of a request put together again: what `LLM.generate` returns and what a plain HTTP answer holds."""

from dataclasses import dataclass, field

from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import FinishReason, Request
from jaxserve.engine.outputs import SequenceMetrics, SequenceOutput


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's n completions."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] | None = None
    """One entry a token, when asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(slots=True)
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """One entry a prompt token, None for the first, which has no context; when asked for."""
    metrics: SequenceMetrics | None = None
    """Of the first completion; None: it has had no output."""

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


class Collector:
    """Takes a request's `SequenceOutput`s in order."""

    def __init__(self, request: Request, prompt: str | None = None) -> None:
        params = request.params
        self.output = RequestOutput(
            request.id,
            list(request.prompt),
            [CompletionOutput(i, logprobs=None if params.logprobs is None else []) for i in range(params.n)],
            prompt=prompt,
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
        )

    def add(self, piece: SequenceOutput) -> bool:
        """True when the request is complete."""
        completion = self.output.outputs[piece.index]
        completion.text += piece.text
        completion.token_ids += piece.tokens
        if completion.logprobs is not None:
            completion.logprobs += piece.logprobs
        if self.output.prompt_logprobs is not None and piece.index == 0:
            self.output.prompt_logprobs += piece.prompt_logprobs
        completion.finish_reason = piece.finish_reason
        completion.stop_reason, completion.error = piece.stop_reason, piece.error
        if piece.index == 0 and piece.metrics is not None:
            self.output.metrics = piece.metrics
        return self.output.finished
