"""From events to what a caller sees: text as it grows, log-probabilities, why it ended.

One `SequenceOutput` a sequence and step: what is new since the one before. Text is detokenized here, on the host, while
the device runs the next step; stop strings are found here too, and end the sequence from outside (`stopped`).

An output is plain data (ids, counts, reasons, times): it can be kept, pickled, and sent to another process. An output
after which more is known of the whole sequence brings it as `SequenceMetrics`.
"""

from dataclasses import dataclass, field

from jaxserve.core.errors import InvalidParameter
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, Refused, TokenSampled
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import FinishReason, Request, Sequence
from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.stop import StopMatcher
from jaxserve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class SequenceMetrics:
    """What is known of a sequence so far. Times are seconds on the engine's clock; None: it has not come to that."""

    arrival_s: float
    """When the request was received, as its maker says."""
    queued_s: float
    """When the engine queued it."""
    prompt_tokens: int
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the last admission."""
    preemptions: int = 0
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    predicted_ttft_s: float = 0.0
    """What the scheduler forecast when it was queued, and what 9 of 10 such forecasts stay within; 0: no forecast."""
    predicted_p90_s: float = 0.0

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @classmethod
    def of(cls, sequence: Sequence, finished_s: float | None = None) -> "SequenceMetrics":
        """`finished_s`: when it ended, if the sequence does not say so yet."""
        forecast = sequence.forecast
        return cls(
            arrival_s=sequence.request.arrival_s,
            queued_s=sequence.queued_s,
            prompt_tokens=sequence.num_prompt,
            cached_tokens=sequence.num_cached,
            preemptions=sequence.preemptions,
            first_scheduled_s=sequence.first_scheduled_s,
            first_token_s=sequence.first_token_s,
            finished_s=finished_s if sequence.finished_s is None else sequence.finished_s,
            predicted_ttft_s=forecast.expected_s if forecast is not None else 0.0,
            predicted_p90_s=forecast.p90_s if forecast is not None else 0.0,
        )


@dataclass(slots=True)
class SequenceOutput:
    """What is new of one sequence. The pieces of a sequence, in order, are the whole."""

    request_id: str
    index: int
    """Which of the request's n completions this is."""
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    """Of prompt tokens, beginning with the second: the first has no context."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token (other than the model's own) or stop string that ended it."""
    error: str | None = None
    metrics: SequenceMetrics | None = None
    """With the first output, the first token, the last output, and when `cached_tokens` or `preemptions` have changed;
    None: as in the output before."""


class _Stream:
    """The text side of one sequence."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer | None) -> None:
        params = sequence.params
        self.detokenizer = None
        if tokenizer is not None:
            self.detokenizer = IncrementalDetokenizer(tokenizer, sequence.request.prompt, params.skip_special_tokens)
        self.stops = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        self.num_tokens = 0
        self.num_scored = 0
        self.reported_preemptions = self.reported_cached = -1
        """Of the sequence's metrics when they were reported last; -1: they were not."""

    def push(self, token: int, heed_stops: bool) -> tuple[str, str | None]:
        """(new text, stop string found in it)"""
        if self.detokenizer is None:
            return "", None
        text = self.detokenizer.push(token)
        return self.stops.push(text, heed_stops) if self.stops else (text, None)

    def flush(self) -> str:
        """Text held back: half a character, or what might have become a stop string."""
        if self.detokenizer is None:
            return ""
        text = self.detokenizer.flush()
        return self.stops.flush(text) if self.stops else text


_WITHOUT_OUTPUT = (Preempted, Refused)


class OutputProcessor:
    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._streams: dict[Sequence, _Stream] = {}
        self._stopped: list[Sequence] = []

    def check(self, request: Request) -> None:
        if request.params.stop and self._tokenizer is None:
            raise InvalidParameter("stop", request.params.stop, "no stop strings: this engine has no tokenizer")

    def open(self, sequence: Sequence) -> None:
        self._streams[sequence] = _Stream(sequence, self._tokenizer)

    def process(self, events: list[Event], now: float) -> list[SequenceOutput]:
        """Outputs in the order of the events; a sequence that has ended yields none.

        `now`: when a sequence ends whose text holds a stop string.
        """
        outputs: dict[Sequence, SequenceOutput] = {}
        streams = self._streams
        for event in events:
            if isinstance(event, _WITHOUT_OUTPUT):
                continue
            sequence = event.sequence
            stream = streams.get(sequence)
            if stream is None:
                continue
            output = outputs.get(sequence)
            if output is None:
                output = outputs[sequence] = SequenceOutput(sequence.request.id, sequence.index)
            match event:
                case TokenSampled():
                    self._take_token(event, stream, output)
                case PromptScored():
                    self._take_scores(event, stream, output)
                case Finished():
                    self._close(sequence, stream, output, event.reason)
                    output.error = event.error
            if output.finish_reason is not None:
                output.metrics = SequenceMetrics.of(sequence, finished_s=now)
            elif (
                stream.reported_cached != sequence.num_cached
                or stream.reported_preemptions != sequence.preemptions
                or stream.num_tokens == 1
            ):
                output.metrics = SequenceMetrics.of(sequence)
                stream.reported_cached, stream.reported_preemptions = sequence.num_cached, sequence.preemptions
        return list(outputs.values())

    def stopped(self) -> list[Sequence]:
        """Sequences that a stop string ended since the last call; the scheduler still has to be told."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def _take_token(self, event: TokenSampled, stream: _Stream, output: SequenceOutput) -> None:
        sequence, params = event.sequence, event.sequence.params
        output.tokens.append(event.token)
        stream.num_tokens += 1
        if event.logprobs is not None:
            output.logprobs.append(event.logprobs)
        by_token = event.finish is FinishReason.STOP
        if by_token and not params.include_stop_str_in_output:
            output.stop_reason = event.token if event.token in params.stop_token_ids else None
            self._close(sequence, stream, output, FinishReason.STOP)
            return
        text, found = stream.push(event.token, heed_stops=stream.num_tokens > params.min_tokens)
        output.text += text
        if found is not None:
            output.stop_reason = found
            output.finish_reason = FinishReason.STOP
            del self._streams[sequence]
            if event.finish is None:
                self._stopped.append(sequence)
        elif event.finish is not None:
            if by_token and event.token in params.stop_token_ids:
                output.stop_reason = event.token
            self._close(sequence, stream, output, event.finish)

    def _take_scores(self, event: PromptScored, stream: _Stream, output: SequenceOutput) -> None:
        """A preempted prompt is computed, and scored, again: what is known already is left out."""
        known = stream.num_scored + 1 - event.start
        fresh = event.logprobs[max(known, 0) :]
        stream.num_scored += len(fresh)
        output.prompt_logprobs.extend(fresh)

    def _close(self, sequence: Sequence, stream: _Stream, output: SequenceOutput, reason: FinishReason) -> None:
        del self._streams[sequence]
        output.text += stream.flush()
        output.finish_reason = reason
