"""Events in, pieces out: each token, score and character exactly once, and what is known of the sequence, as data."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from jaxserve.core.errors import InvalidParameter
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, TokenSampled
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import FinishReason, Sequence, TtftForecast
from jaxserve.engine.collect import Collector, RequestOutput
from jaxserve.engine.outputs import OutputProcessor, SequenceMetrics, SequenceOutput
from tests.engine.conftest import request
from tests.engine.test_outputs import Letters

A, B, C, D = range(4)
"""Tokens, which `Letters` writes as a, b, c and d."""


class Bench:
    """A processor with the sequences of one request, which are moved by hand as the scheduler would."""

    def __init__(self, tokenizer: Any = None, prompt: int = 8, **params: Any) -> None:
        self.processor = OutputProcessor(Letters() if tokenizer is None else tokenizer)
        self.request = request("r", list(range(prompt)), arrival_s=1.0, **({"max_tokens": 20} | params))
        self.sequences = [Sequence(self.request, i, 100, 0) for i in range(self.request.params.n)]
        for sequence in self.sequences:
            self.processor.open(sequence)
        self.collector = Collector(self.request)

    def token(self, token: int, finish: FinishReason | None = None, index: int = 0, **fields: Any) -> TokenSampled:
        sequence = self.sequences[index]
        sequence.tokens.append(token)
        sequence.first_token_s = sequence.first_token_s or 5.0
        sequence.finished_s = sequence.finished_s if finish is None else 9.0
        return TokenSampled(sequence, token, finish=finish, **fields)

    def process(self, *events: Event, now: float = 7.0) -> list[SequenceOutput]:
        outputs = self.processor.process(list(events), now)
        for output in outputs:
            self.collector.add(pickle.loads(pickle.dumps(output)))
        return outputs

    @property
    def whole(self) -> RequestOutput:
        return self.collector.output


def scores(start: int, end: int) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(position, -float(position), 1) for position in range(start, end))


@pytest.mark.parametrize(
    "again",
    [[(1, 5)], [(1, 3), (3, 8)], [(1, 8)], [(1, 5), (5, 8)]],
    ids=["as far", "in other chunks", "in one", "in chunks and on"],
)
def test_a_prompt_that_is_scored_twice_is_told_once(again: list[tuple[int, int]]) -> None:
    """A preempted prompt is computed again from its start, and in other chunks."""
    bench = Bench(prompt_logprobs=0)
    sequence = bench.sequences[0]
    bench.process(PromptScored(sequence, 1, scores(1, 3)))
    bench.process(PromptScored(sequence, 3, scores(3, 5)))
    assert bench.process(Preempted(sequence)) == []
    for start, end in again:
        bench.process(PromptScored(sequence, start, scores(start, end)))
    if again[-1][1] < 8:
        bench.process(PromptScored(sequence, 5, scores(5, 8)))
    bench.process(bench.token(A, FinishReason.LENGTH))
    assert bench.whole.prompt_logprobs == [None, *scores(1, 8)]


def test_scores_and_a_token_of_one_step_are_one_output() -> None:
    bench = Bench(prompt_logprobs=0, logprobs=0)
    entry = TokenLogprobs(A, -0.5, 2)
    (output,) = bench.process(PromptScored(bench.sequences[0], 1, scores(1, 8)), bench.token(A, logprobs=entry))
    assert output.prompt_logprobs == list(scores(1, 8)) and output.tokens == [A] and output.logprobs == [entry]


def test_prompt_scores_are_the_first_completions() -> None:
    bench = Bench(prompt_logprobs=0, n=2)
    bench.process(*(PromptScored(s, 1, scores(1, 8)) for s in reversed(bench.sequences)))
    bench.process(bench.token(A, FinishReason.LENGTH), bench.token(B, FinishReason.LENGTH, index=1))
    assert bench.whole.prompt_logprobs == [None, *scores(1, 8)] and bench.whole.finished


def test_metrics_come_when_they_have_changed() -> None:
    bench = Bench(prompt_logprobs=0)
    sequence = bench.sequences[0]
    sequence.queued_s, sequence.first_scheduled_s, sequence.num_cached = 2.0, 3.0, 4
    sequence.forecast = TtftForecast(3.0, 3.5, 4.5)
    told = [bench.process(PromptScored(sequence, 1, scores(1, 8)))[0].metrics]
    first = SequenceMetrics(1.0, 2.0, 8, 4, 0, 3.0, predicted_ttft_s=3.5, predicted_p90_s=4.5)
    assert told == [first] and first.ttft_s is None
    (output,) = bench.process(bench.token(A))
    assert output.metrics == replace(first, first_token_s=5.0) and output.metrics.ttft_s == 4.0
    assert bench.process(bench.token(A))[0].metrics is None
    sequence.preemptions = 1
    assert bench.process(bench.token(A))[0].metrics == replace(output.metrics, preemptions=1)
    assert bench.process(bench.token(A))[0].metrics is None
    sequence.num_cached = 0
    assert bench.process(bench.token(A))[0].metrics == replace(output.metrics, preemptions=1, cached_tokens=0)
    bench.process(bench.token(A, FinishReason.LENGTH))
    assert bench.whole.metrics == replace(output.metrics, preemptions=1, cached_tokens=0, finished_s=9.0)


def test_metrics_of_a_request_are_its_first_completions() -> None:
    bench = Bench(n=2)
    bench.sequences[1].num_cached = 7
    bench.process(bench.token(A, FinishReason.LENGTH))
    bench.process(bench.token(B, FinishReason.LENGTH, index=1))
    assert bench.whole.metrics is not None and bench.whole.metrics.cached_tokens == 0


def test_a_stop_string_ends_its_sequence_at_that_moment_and_once() -> None:
    bench = Bench(stop=("bc",), n=2)
    assert [output.text for output in bench.process(bench.token(A), bench.token(B))] == ["a"], "b may begin a stop"
    (output,) = bench.process(bench.token(C), bench.token(D))
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", "bc")
    assert output.tokens == [C] and output.metrics is not None and output.metrics.finished_s == 7.0
    assert bench.processor.stopped() == [bench.sequences[0]] and bench.processor.stopped() == []
    assert bench.process(bench.token(A), Finished(bench.sequences[0], FinishReason.STOP)) == []
    bench.process(bench.token(B, index=1), bench.token(C, FinishReason.LENGTH, index=1))
    assert bench.processor.stopped() == [], "the scheduler has ended it already"
    assert [(c.text, c.finish_reason, c.stop_reason) for c in bench.whole.outputs] == [
        ("a", "stop", "bc"),
        ("", "stop", "bc"),
    ]


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR])
def test_text_that_was_held_back_comes_at_the_end(reason: FinishReason) -> None:
    bench = Bench(stop=("bc",))
    if reason is FinishReason.LENGTH:
        bench.process(bench.token(A), bench.token(B, reason))
    else:
        bench.process(bench.token(A), bench.token(B))
        bench.process(Finished(bench.sequences[0], reason, "why" if reason is FinishReason.ERROR else None))
    (completion,) = bench.whole.outputs
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("ab", reason, None)
    assert completion.error == ("why" if reason is FinishReason.ERROR else None) and bench.whole.finished


@pytest.mark.parametrize("included", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_stop_token_is_named_unless_it_is_the_models_own(own: bool, included: bool) -> None:
    bench = Bench(stop_token_ids=() if own else (D,), stop=("bx",), include_stop_str_in_output=included)
    bench.process(bench.token(A), bench.token(B), bench.token(D, FinishReason.STOP))
    (completion,) = bench.whole.outputs
    assert (completion.text, completion.token_ids) == ("abd" if included else "ab", [A, B, D])
    assert completion.finish_reason == "stop" and completion.stop_reason == (None if own else D)


@pytest.mark.parametrize("together", [True, False])
def test_a_stop_string_counts_from_the_token_after_min_tokens(together: bool) -> None:
    """Also where one step brings several tokens of a sequence."""
    bench = Bench(stop=("a",), min_tokens=2)
    if together:
        bench.process(*[bench.token(A) for _ in range(4)])
    for _ in range(0 if together else 4):
        bench.process(bench.token(A))
    (completion,) = bench.whole.outputs
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("aa", [A] * 3, "stop")


def test_without_a_tokenizer_there_is_no_text_and_no_stop_string() -> None:
    processor = OutputProcessor(None)
    with pytest.raises(InvalidParameter, match="stop"):
        processor.check(request("r", [1], stop=("x",)))
    processor.check(request("r", [1], stop_token_ids=(1,)))
    sequence = Sequence(request("r", [1]), 0, 100, 0)
    processor.open(sequence)
    (output,) = processor.process([TokenSampled(sequence, A, finish=FinishReason.LENGTH)], 0.0)
    assert (output.text, output.tokens, output.finish_reason) == ("", [A], "length")


def test_a_request_is_whole_when_all_its_completions_have_ended() -> None:
    bench = Bench(n=2, logprobs=0)
    entries = [TokenLogprobs(A, -0.5, 1), TokenLogprobs(B, -0.25, 1)]
    bench.process(bench.token(A, logprobs=entries[0]), bench.token(C, index=1, logprobs=entries[1]))
    done = SequenceOutput("r", 1, "x", [D], finish_reason=FinishReason.STOP, stop_reason="s", error="e")
    assert not bench.collector.add(done) and not bench.whole.finished
    assert bench.collector.add(SequenceOutput("r", 0, finish_reason=FinishReason.ABORT)) and bench.whole.finished
    first, second = bench.whole.outputs
    assert (first.token_ids, first.finish_reason, first.logprobs) == ([A], "abort", entries[:1])
    assert first.cumulative_logprob == -0.5
    assert (second.text, second.token_ids) == ("cx", [C, D])
    assert (second.finish_reason, second.stop_reason, second.error) == ("stop", "s", "e")


def test_what_was_not_asked_for_is_none() -> None:
    bench = Bench()
    bench.process(bench.token(A))
    bench.process(bench.token(B))
    assert (
        bench.whole.outputs[0].logprobs is None and bench.whole.prompt_logprobs is None and bench.whole.prompt is None
    )
    assert bench.whole.metrics is not None, "an output without metrics leaves those of the one before"
    assert Collector(bench.request, "the text").output.prompt == "the text"


def test_outputs_come_in_the_order_of_their_first_events() -> None:
    bench = Bench(n=2)
    outputs = bench.process(bench.token(B, index=1), bench.token(A), bench.token(C, index=1))
    assert [(output.index, output.tokens) for output in outputs] == [(1, [B, C]), (0, [A])]


class Pieces:
    """Stands for a tokenizer with words, halves of a character and a special token; a text's first space is no text."""

    special_ids = frozenset({3})
    pieces = (b" word", b"\xc3", b"\xa9", b"<end>")

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        shown = [self.pieces[t] for t in tokens if not (skip_special_tokens and t in self.special_ids)]
        return b"".join(shown).decode("utf-8", "replace").removeprefix(" ")


@pytest.mark.parametrize(
    ("tokens", "skip", "text"),
    [([0, 1, 2], True, " word\u00e9"), ([0, 1], True, " word\ufffd"), ([3, 0], True, " word"), ([3], False, "<end>")],
    ids=["behind a prompt", "half a character", "special left out", "special shown"],
)
def test_text_is_that_of_the_tokens_behind_the_prompt(tokens: list[int], skip: bool, text: str) -> None:
    bench = Bench(Pieces(), prompt=1, skip_special_tokens=skip)
    for token in tokens[:-1]:
        bench.process(bench.token(token))
    bench.process(bench.token(tokens[-1], FinishReason.LENGTH))
    assert bench.whole.outputs[0].text == text
