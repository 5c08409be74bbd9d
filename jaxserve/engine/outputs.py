"""From events to what a caller sees: text as it grows, log-probabilities, why it ended.

One `SequenceOutput` a sequence and step: what is new since the one before. Text is detokenized here, on the host, while
the device runs the next step; stop strings are found here too, and end the sequence from outside (`stopped`).
"""

from dataclasses import dataclass, field

from jaxserve.core.errors import InvalidParameter
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, Refused, TokenSampled
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import FinishReason, Request, Sequence
from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.stop import StopMatcher
from jaxserve.text.tokenizer import Tokenizer


@dataclass(slots=True)
class SequenceOutput:
    """What is new of one sequence. The pieces of a sequence, in order, are the whole."""

    sequence: Sequence
    text: str = ""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    """Of prompt tokens, beginning with the second: the first has no context."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token (other than the model's own) or stop string that ended it."""
    error: str | None = None

    @property
    def request_id(self) -> str:
        return self.sequence.request.id

    @property
    def index(self) -> int:
        return self.sequence.index


class _Stream:
    """The text side of one sequence."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer | None) -> None:
        params = sequence.params
        self.detokenizer = None
        if tokenizer is not None:
            self.detokenizer = IncrementalDetokenizer(tokenizer, sequence.request.prompt, params.skip_special_tokens)
        self.stops = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        self.num_scored = 0

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

    def process(self, events: list[Event]) -> list[SequenceOutput]:
        """Outputs in the order of the events; a sequence that has ended yields none."""
        outputs: dict[Sequence, SequenceOutput] = {}
        for event in events:
            if isinstance(event, Preempted | Refused) or event.sequence not in self._streams:
                continue
            output = outputs.setdefault(event.sequence, SequenceOutput(event.sequence))
            match event:
                case TokenSampled():
                    self._take_token(event, output)
                case PromptScored():
                    self._take_scores(event, output)
                case Finished():
                    self._close(output, event.reason)
                    output.error = event.error
        return list(outputs.values())

    def stopped(self) -> list[Sequence]:
        """Sequences that a stop string ended since the last call; the scheduler still has to be told."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def _take_token(self, event: TokenSampled, output: SequenceOutput) -> None:
        sequence, params = event.sequence, event.sequence.params
        stream = self._streams[sequence]
        output.tokens.append(event.token)
        if event.logprobs is not None:
            output.logprobs.append(event.logprobs)
        by_token = event.finish is FinishReason.STOP
        if by_token and not params.include_stop_str_in_output:
            output.stop_reason = event.token if event.token in params.stop_token_ids else None
            self._close(output, FinishReason.STOP)
            return
        text, found = stream.push(event.token, heed_stops=sequence.num_outputs > params.min_tokens)
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
            self._close(output, event.finish)

    def _take_scores(self, event: PromptScored, output: SequenceOutput) -> None:
        """A preempted prompt is computed, and scored, again: what is known already is left out."""
        stream = self._streams[event.sequence]
        known = stream.num_scored + 1 - event.start
        fresh = event.logprobs[max(known, 0) :]
        stream.num_scored += len(fresh)
        output.prompt_logprobs.extend(fresh)

    def _close(self, output: SequenceOutput, reason: FinishReason) -> None:
        output.text += self._streams.pop(output.sequence).flush()
        output.finish_reason = reason
