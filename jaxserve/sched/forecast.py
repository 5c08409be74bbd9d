"""Seconds until a prompt's first token: the queue taken step by step through the cost model.

Each step is packed about as the policy would: prompt tokens in the queue's order, at most the policy's share of one
prompt, beside the decodes. A prompt that ends becomes a decode; of the decodes a share of 1 / mean output length ends
in each step. Prompts wait while all slots are taken, but for those that they may take from others by preemption. The
forecast stops at a horizon and extrapolates from there.
"""

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

MOST_STEPS = 1000
"""Steps after which a forecast goes on at the pace so far: a long queue and a loose objective would take too long."""


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

    def first_token_s(
        self,
        own_tokens: int,
        ahead: Iterable[int],
        rows: int,
        context: int,
        outputs: float,
        horizon_s: float,
        takes_slots: int = 0,
    ) -> float:
        """Seconds until the first token of a prompt of `own_tokens` that is not in the cache.

        `ahead`: tokens left of each prompt that goes before it; `rows`, `context`: decodes, and the sum of their
        contexts; `outputs`: mean output length; `takes_slots`: slots of running sequences that may be preempted for it.
        """
        queue = deque(ahead)
        queue.append(own_tokens)  # stays the last
        spent, decodes, held = 0.0, float(rows), float(context)
        stay, slots = 1.0 - 1.0 / outputs, self._config.max_num_seqs
        tokens, steps = sum(queue), 0
        while spent < horizon_s:
            if steps == MOST_STEPS:
                return spent * tokens / max(tokens - sum(queue), 1)
            steps += 1
            chunks = self._take_chunks(queue, decodes, held, slots + takes_slots)
            spent += self._step_s(chunks, round(decodes), round(held))
            if chunks.last_ends:
                return spent
            held = held * stay + decodes * stay + chunks.ended * chunks.tokens / max(chunks.rows, 1)
            decodes = decodes * stay + chunks.ended
            if decodes > slots:  # others were preempted
                takes_slots -= round(decodes) - slots
                decodes = float(slots)
            if not chunks.tokens and decodes < 0.5:
                return spent + horizon_s
        return spent * (1.0 + sum(queue) / max(self._config.max_num_batched_tokens, 1))

    def _take_chunks(self, queue: deque[int], decodes: float, held: float, slots: int) -> _Chunks:
        """Take one step's prompt tokens off the queue; a prompt with tokens left keeps its place."""
        budget = self._policy.prefill_tokens(min(round(decodes), self._config.max_num_seqs), round(held))
        most = max(self._policy.most_of_one(islice(queue, PROMPTS_SEEN), budget), 1)
        found, cut = _Chunks(), list[int]()
        while (
            queue
            and found.tokens < budget
            and found.rows < self._buckets.prefill_rows
            and decodes + found.rows + 0.5 <= slots  # as likely as not there is one more
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
