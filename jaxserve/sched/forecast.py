"""Seconds until a prompt's first token: the queue taken step by step through the cost model.

Each step is packed about as the policy would: prompt tokens in the queue's order, at most the policy's share of one
prompt, beside the decodes. A prompt that ends becomes a decode; of the decodes a share of 1 / mean output length ends
in each step. Prompts wait while all slots are taken. The forecast stops at a horizon and extrapolates from there.

The median of measured over predicted time corrects later forecasts; the 0.9 quantile makes the P90 forecast.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.costs.model import StepFeatures
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.chunking import PROMPTS_SEEN
from jaxserve.sched.policies.policy import BatchPolicy

WINDOW = 256
"""Forecasts whose errors are remembered."""
ENOUGH = 20
"""Errors from which on forecasts are corrected."""


@dataclass(slots=True)
class _Chunks:
    """The prompt chunks of one step."""

    tokens: int = 0
    rows: int = 0
    ended: int = 0
    """Rows that end their prompts."""
    last_ends: bool = False
    """The queue's last prompt is one of them."""
    pairs: float = 0.0
    """As `StepFeatures.prefill_pairs`."""


class Forecast:
    def __init__(self, config: SchedulerConfig, buckets: BucketTable, costs: StepCosts, policy: BatchPolicy) -> None:
        self._config, self._buckets, self._costs, self._policy = config, buckets, costs, policy
        self._recent: deque[float] = deque()
        self._ratios: list[float] = []

    def first_token_s(
        self, own_tokens: int, ahead: Iterable[int], rows: int, context: int, outputs: float, horizon_s: float
    ) -> float:
        """Seconds until the first token of a prompt of `own_tokens` that is not in the cache.

        `ahead`: tokens left of each prompt that goes before it; `rows`, `context`: decodes, and the sum of their
        contexts; `outputs`: mean output length.
        """
        queue = deque(ahead)
        queue.append(own_tokens)  # stays the last
        spent, decodes, held = 0.0, float(rows), float(context)
        stay = 1.0 - 1.0 / outputs
        while spent < horizon_s:
            chunks = self._take_chunks(queue, decodes, held)
            spent += self._step_s(chunks, round(decodes), round(held))
            if chunks.last_ends:
                return spent
            held = held * stay + decodes * stay + chunks.ended * chunks.tokens / max(chunks.rows, 1)
            decodes = decodes * stay + chunks.ended
            if not chunks.tokens and decodes < 0.5:
                return spent + horizon_s
        return spent * (1.0 + sum(queue) / max(self._config.max_num_batched_tokens, 1))

    def _take_chunks(self, queue: deque[int], decodes: float, held: float) -> _Chunks:
        """Take one step's prompt tokens off the queue; a prompt with tokens left keeps its place."""
        slots = self._config.max_num_seqs
        budget = self._policy.prefill_tokens(min(round(decodes), slots), round(held))
        most = max(self._policy.most_of_one(islice(queue, PROMPTS_SEEN), budget), 1)
        found, cut = _Chunks(), list[int]()
        while (
            queue
            and found.tokens < budget
            and found.rows < self._buckets.prefill_rows
            and decodes + found.rows + found.ended < slots
        ):
            left = queue.popleft()
            chunk = min(left, most, budget - found.tokens)
            found.tokens += chunk
            found.pairs += 0.5 * chunk * chunk
            found.rows += 1
            if chunk < left:
                cut.append(left - chunk)
            else:
                found.ended += 1
                found.last_ends = not queue
        queue.extendleft(reversed(cut))
        return found

    def _step_s(self, chunks: _Chunks, decodes: int, context: int) -> float:
        """A step with both, or one of each if no program takes both. Context lengths are taken as equal."""
        if chunks.tokens and decodes and not self._buckets.mixes:
            return self._step_s(chunks, 0, 0) + self._step_s(_Chunks(), decodes, context)
        bucket = self._buckets.fit(min(decodes, self._config.max_num_seqs), chunks.tokens)
        mean, chunk = context // max(decodes, 1), chunks.tokens // max(chunks.rows, 1)
        features = StepFeatures(chunks.tokens, chunks.pairs, chunks.rows, decodes, context, bucket, mean, chunk)
        return self._costs.seconds(features)

    # --- how good it is ---------------------------------------------------------------------------------------

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Note what a forecast, uncorrected, said and what happened."""
        if predicted_s <= 0.0:
            return
        ratio = measured_s / predicted_s
        self._recent.append(ratio)
        insort(self._ratios, ratio)
        if len(self._recent) > WINDOW:
            del self._ratios[bisect_left(self._ratios, self._recent.popleft())]

    def quantile(self, share: float) -> float:
        """The factor with which this share of the forecasts covers what happened: the nearest rank."""
        if len(self._ratios) < ENOUGH:
            return 1.0
        return self._ratios[min(int(share * len(self._ratios)), len(self._ratios) - 1)]
