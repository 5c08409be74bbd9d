"""Adaptive chunks: as many prompt tokens as the tightest time between tokens in the batch leaves room for.

After FairBatching and QoServe. Each sequence that decodes has a deadline for its next token: its first token's time
plus `TARGET` of its TPOT objective for each token since. The tightest deadline is this step's time; the step takes
every decode, and the largest prefill bucket whose predicted time, with the margin that covers 19 predictions of 20,
fits.

    now                                 tightest deadline
     |--- decodes ---|--- prompt tokens ---|
                      128   256   512 -> 512

Without decodes the step takes all that `max_num_batched_tokens` allows. While blocks are short no sequence is admitted,
so that the running ones can end. Without an objective, or with one that a single row alone would miss, a step is as
large as in `chunked`.

Within the step a long prompt leaves room for short ones (`sched.chunking`). Where two steps, prompts alone and decodes
alone, are predicted to be faster than one with both, they take turns.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import islice

from jaxserve.costs.model import StepFeatures
from jaxserve.sched.chunking import PROMPTS_SEEN, most_of_one
from jaxserve.sched.policies.policy import BatchPolicy, Load, Mode, PolicyContext, StepLimits

TARGET = 0.93
"""Share of the objective that steps aim at: the rest is for the error of the prediction."""
BEHIND = 0.5
"""A sequence that is late shortens a step to this share of its target, and no further."""
PRESSURE = 0.95
"""Share of the KV blocks in use above which no sequence is admitted."""
APART = 0.95
"""Prompts and decodes take turns if two steps take at most this share of one with both."""


class Adaptive(BatchPolicy):
    def __init__(self, context: PolicyContext) -> None:
        config = context.config
        self._costs, self._buckets = context.costs, context.buckets
        self._tokens = min(config.max_num_batched_tokens, context.buckets.max_prefill_tokens)
        self._chunk = config.chunk_size or config.max_num_batched_tokens
        self._sizes = [size for size in context.buckets.prefill if size <= self._tokens] or [self._tokens]
        self._seqs = config.max_num_seqs
        self._tightest = float("inf")

    def limits(self, load: Load) -> StepLimits:
        rows = context = longest = 0
        slack, tightest = float("inf"), float("inf")
        start = 0
        for s in load.running:
            if not s.decoding:
                start = start or s.num_computed
                continue
            rows += 1
            context += s.num_computed
            longest = max(longest, s.num_computed)
            if s.tpot_slo_s is not None:
                target = TARGET * s.tpot_slo_s
                tightest = min(tightest, target)
                slack = min(slack, self._slack(load.now, target, s.first_token_s, len(s.tokens) - s.num_prompt))
        admit = self._seqs if load.kv_usage < PRESSURE or not rows else 0
        if tightest < float("inf"):
            self._tightest = tightest
        if slack == float("inf") or not self._costs.ready or self._cost(0, 0, 1, context // rows, longest) > tightest:
            tokens = self._tokens
        else:
            tokens = min(rows + self._fitting(slack, start, rows, context, longest), self._tokens)
        prompts = min(max(tokens - rows, 0), self._sizes[-1])
        places = min(admit, self._seqs - len(load.running))
        chunk = min(self._chunk, most_of_one(_pending(load, places), prompts)) if prompts else self._chunk
        return StepLimits(tokens, chunk, admit, self._mode(prompts, start, rows, context, longest))

    def _mode(self, prompts: int, start: int, rows: int, context: int, longest: int) -> Mode:
        if not rows or not prompts or not self._costs.ready:
            return Mode.MIXED
        apart = self._cost(prompts, start, 0, 0, 0) + self._cost(0, 0, rows, context, longest)
        mixed = self._cost(prompts, start, rows, context, longest)
        return Mode.ALTERNATE if apart < APART * mixed else Mode.MIXED

    def prefill_tokens(self, rows: int, context: int) -> int:
        if not rows or self._tightest == float("inf"):
            return self._tokens
        return self._fitting(self._tightest, 0, rows, context, context // rows)

    def most_of_one(self, pending: Iterable[int], prompts: int) -> int:
        return min(self._chunk, most_of_one(pending, prompts))

    def _fitting(self, seconds: float, start: int, rows: int, context: int, longest: int) -> int:
        """The largest prefill bucket that fits into `seconds` beside these decodes; 0 if none does."""
        seconds /= self._costs.margin
        fits = bisect_right(self._sizes, seconds, key=lambda size: self._cost(size, start, rows, context, longest))
        return self._sizes[fits - 1] if fits else 0

    def _slack(self, now: float, target: float, first_token_s: float | None, outputs: int) -> float:
        """Time until the sequence's next token is due."""
        due = now + target if first_token_s is None else first_token_s + outputs * target
        return min(max(due - now, BEHIND * target), target)

    def _cost(self, prefill_tokens: int, start: int, rows: int, context: int, longest: int) -> float:
        if prefill_tokens and rows and not self._buckets.mixes:  # two steps, then
            return self._cost(prefill_tokens, start, 0, 0, 0) + self._cost(0, 0, rows, context, longest)
        pairs = prefill_tokens * (start + 0.5 * prefill_tokens)
        bucket = self._buckets.fit(rows, prefill_tokens)
        chunks, seen = (1, start + prefill_tokens) if prefill_tokens else (0, 0)
        return self._costs.seconds(StepFeatures(prefill_tokens, pairs, chunks, rows, context, bucket, longest, seen))


def _pending(load: Load, places: int) -> list[int]:
    """Tokens left of each prompt that could have a chunk in the step, while `places` more sequences may be admitted."""
    begun = [s.num_uncomputed for s in load.running if not s.decoding]
    return begun + [s.num_uncomputed for s in islice(load.waiting, min(places, PROMPTS_SEEN))]
