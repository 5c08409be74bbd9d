"""Adaptive chunks: as many prompt tokens as the tightest time between tokens in the batch leaves room for.

After FairBatching and QoServe. Each sequence that decodes has a deadline for its next token: its first token's time
plus `TARGET` of its TPOT objective for each token since. The tightest deadline is this step's time; the step takes
every decode, and the largest prefill bucket whose predicted time, with the margin that covers 19 predictions of 20,
fits.

    now                                 tightest deadline
     |--- decodes ---|--- prompt tokens ---|
                      128   256   512 -> 512

Without decodes the step takes all that `max_num_batched_tokens` allows. While blocks are short no sequence is admitted,
so that the running ones can end. Without an objective, or with one that a single row beside the smallest bucket would
miss, a step is as large as in `chunked`.

Rows that have no objective, or are of a lower class, do not starve a prompt whose tenant was promised a time to the
first token. On a machine that has become slow they would leave no time for any prompt. If no bucket fits beside all
rows, such prompts get the bucket that they need. Else they get what fits beside the other rows alone, or the bucket
that they need if they would be late otherwise. Nor does a pool that is full of such rows' blocks keep them out.

    now                                      tightest deadline
     |-- rows with and without an objective --|----|                room for 64 tokens
     |- rows with one -|--- promised prompts ---|                   room for 256: the step takes these beside all rows

Within the step a long prompt leaves room for short ones (`sched.chunking`). Where two steps, prompts alone and decodes
alone, are predicted to be faster than one with both, they take turns.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import islice
from math import ceil
from typing import NamedTuple

from jaxserve.core.sequence import Sequence
from jaxserve.costs.model import StepFeatures
from jaxserve.sched.chunking import PROMPTS_SEEN, most_of_one
from jaxserve.sched.policies.policy import BatchPolicy, Load, Mode, PolicyContext, StepLimits

TARGET = 0.93
"""Share of the objective that steps aim at: the rest is for the error of the prediction."""
BEHIND = 0.5
"""A sequence that is late shortens a step to this share of its target, and no further."""
PRESSURE = 0.95
"""Share of the KV blocks in use above which no sequence is admitted."""
IN_STEPS = 0.5
"""Share of the time left to its first token's objective that a promised prompt may be spread over in small buckets."""
APART = 0.95
"""Prompts and decodes take turns if two steps take at most this share of one with both."""


class _Decodes(NamedTuple):
    """Of some decode rows."""

    rows: int
    context: int
    """Sum of their contexts."""
    longest: int
    """The longest context."""
    target: float
    """The tightest time between tokens that they aim at; infinity: none has an objective."""
    slack: float
    """Time until the first of their next tokens is due."""


class Adaptive(BatchPolicy):
    def __init__(self, context: PolicyContext) -> None:
        config = context.config
        self._costs, self._buckets = context.costs, context.buckets
        self._tokens = min(config.max_num_batched_tokens, context.buckets.max_prefill_tokens)
        self._chunk = config.chunk_size or config.max_num_batched_tokens
        self._sizes = [size for size in context.buckets.prefill if size <= self._tokens] or [self._tokens]
        self._seqs = config.max_num_seqs
        self._tightest = float("inf")
        self._bound = 1.0

    def limits(self, load: Load) -> StepLimits:
        decoding = [s for s in load.running if s.decoding]
        begun = [s for s in load.running if not s.decoding]
        start = next((s.num_computed for s in begun if s.num_computed), 0)
        decodes = self._decodes(load.now, decoding)
        rows, context, longest = decodes.rows, decodes.context, decodes.longest
        promised = [s for s in begun if s.promised_ttft_s is not None] + [*islice(load.promised, PROMPTS_SEEN)]
        prompts = self._prompts(decodes, start, decodes.slack)
        if promised and prompts < self._sizes[-1]:
            prompts = self._owed(load.now, promised, decoding, start, decodes, prompts)
        self._remember(load.running, decoding)
        tokens = min(rows + prompts, self._tokens)
        prompts = min(max(tokens - rows, 0), self._sizes[-1])
        admit = self._admitted(load, rows)
        places = min(admit, self._seqs - len(load.running))
        chunk = min(self._chunk, most_of_one(_pending(load, places), prompts)) if prompts else self._chunk
        return StepLimits(tokens, chunk, admit, self._mode(prompts, start, rows, context, longest))

    def _decodes(self, now: float, decoding: Iterable[Sequence]) -> "_Decodes":
        rows = context = longest = 0
        slack, target = float("inf"), float("inf")
        for s in decoding:
            rows += 1
            context += s.num_computed
            longest = max(longest, s.num_computed)
            if s.tpot_slo_s is not None:
                own = TARGET * s.tpot_slo_s
                target = min(target, own)
                slack = min(slack, self._slack(now, own, s.first_token_s, len(s.tokens) - s.num_prompt))
        return _Decodes(rows, context, longest, target, slack)

    def _prompts(self, decodes: "_Decodes", start: int, seconds: float, margin: float | None = None) -> int:
        """Prompt tokens beside these decodes in a step of `seconds`."""
        rows, context, longest, target, _ = decodes
        if target == float("inf") or not self._costs.ready:
            return self._tokens
        if self._cost(self._sizes[0], start, 1, context // rows, longest) > target:
            return self._tokens
        return self._fitting(seconds / (margin or self._costs.margin), start, rows, context, longest)

    def _owed(
        self,
        now: float,
        promised: list[Sequence],
        decoding: list[Sequence],
        start: int,
        decodes: "_Decodes",
        prompts: int,
    ) -> int:
        """Prompt tokens of the step, where rows without an objective, or of a lower class, leave `prompts` of them."""
        best = min(s.priority for s in promised)
        bound = [s for s in decoding if s.tpot_slo_s is not None and s.priority <= best]
        if len(bound) == len(decoding):
            return prompts
        needed = sum(s.num_uncomputed for s in promised)
        whole = next((size for size in self._sizes if size >= needed), self._sizes[-1])
        if not prompts or whole <= prompts:
            return max(prompts, whole)
        beside = self._decodes(now, bound)
        fits = max(prompts, min(self._prompts(beside, start, beside.target, margin=1.0), whole))
        left_s = min(s.queued_s + s.promised_ttft_s - now for s in promised if s.promised_ttft_s is not None)
        step_s = self._cost(fits, start, decodes.rows, decodes.context, decodes.longest)
        return fits if ceil(needed / fits) * step_s <= IN_STEPS * left_s else max(fits, whole)

    def _admitted(self, load: Load, rows: int) -> int:
        """Most sequences that may be admitted: while blocks are short, only those for which others can make room."""
        if load.kv_usage < PRESSURE or not rows:
            return self._seqs
        if not load.promised:
            return 0
        best = min(s.priority for s in load.promised)
        lower = any(s.promised_ttft_s is None or s.priority > best for s in load.running)
        return min(len(load.promised), self._seqs) if lower else 0

    def _mode(self, prompts: int, start: int, rows: int, context: int, longest: int) -> Mode:
        if not rows or not prompts or not self._costs.ready:
            return Mode.MIXED
        apart = self._cost(prompts, start, 0, 0, 0) + self._cost(0, 0, rows, context, longest)
        mixed = self._cost(prompts, start, rows, context, longest)
        return Mode.ALTERNATE if apart < APART * mixed else Mode.MIXED

    def _remember(self, running: Collection[Sequence], decoding: list[Sequence]) -> None:
        """For forecasts: the tightest objective, and the share of the decodes that have one."""
        self._tightest = min((TARGET * s.tpot_slo_s for s in running if s.tpot_slo_s is not None), default=float("inf"))
        bound = sum(1 for s in decoding if s.tpot_slo_s is not None)
        self._bound = bound / len(decoding) if decoding else 1.0

    def prefill_tokens(self, rows: int, context: int) -> int:
        if not rows:
            return self._tokens
        decodes = _Decodes(rows, context, context // rows, self._tightest, self._tightest)
        prompts, bound = self._prompts(decodes, 0, self._tightest), round(self._bound * rows)
        if bound == rows:
            return prompts
        if not prompts or not bound:
            return self._sizes[-1]
        beside = decodes._replace(rows=bound, context=context * bound // rows)
        return max(prompts, self._prompts(beside, 0, self._tightest, margin=1.0))

    def most_of_one(self, pending: Iterable[int], prompts: int) -> int:
        return min(self._chunk, most_of_one(pending, prompts))

    def _fitting(self, seconds: float, start: int, rows: int, context: int, longest: int) -> int:
        """The largest prefill bucket that fits into `seconds` beside these decodes; 0 if none does."""
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
