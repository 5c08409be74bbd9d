"""When will its first token come? The live queue rolled forward through the cost model.

Step by step, as the policy would pack them: prompt tokens in order of arrival, as many of one prompt as it gives one,
beside the decodes, which grow by one as each prompt ends and shrink as outputs end, a share of 1 / mean output length a
step. Slots are waited for when there are none. The forecast stops at a horizon: what takes longer is told as longer
than that.

Each forecast is compared with what happens. The median of the ratios corrects the next one; their 0.9 quantile makes
the P90 forecast.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from itertools import islice

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.costs.model import StepFeatures
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.policies.policy import BatchPolicy
from jaxserve.sched.prompt_mix import SEEN

WINDOW = 256
ENOUGH = 20


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
        spent, live, held = 0.0, float(rows), float(context)
        prefill_rows, slots = self._buckets.prefill_rows, self._config.max_num_seqs
        while spent < horizon_s:
            budget = self._policy.prefill_tokens(min(round(live), slots), round(held))
            most = max(self._policy.most_of_one(islice(queue, SEEN), budget), 1)
            taken, taking, pairs, ended = 0, 0, 0.0, 0
            cut: list[int] = []
            is_there = False
            while queue and taken < budget and taking < prefill_rows and live + taking + ended < slots:
                left = queue.popleft()
                chunk = min(left, most, budget - taken)
                taken += chunk
                pairs += 0.5 * chunk * chunk
                taking += 1
                if chunk < left:
                    cut.append(left - chunk)
                else:
                    ended += 1
                    is_there = not queue
            queue.extendleft(reversed(cut))
            spent += self._step_s(taken, pairs, taking, taken // max(taking, 1), round(live), round(held))
            if is_there:
                return spent
            stay = 1.0 - 1.0 / outputs
            held = held * stay + live * stay + ended * taken / max(taking, 1)
            live = live * stay + ended
            if not taken and live < 0.5:
                return spent + horizon_s
        return spent * (1.0 + sum(queue) / max(self._config.max_num_batched_tokens, 1))

    def _step_s(self, tokens: int, pairs: float, rows: int, seen: int, decodes: int, context: int) -> float:
        """A step with both, or one of each where none holds both. `seen`: the most that a chunk sees."""
        if tokens and decodes and not self._buckets.mixes:
            return self._step_s(tokens, pairs, rows, seen, 0, 0) + self._step_s(0, 0.0, 0, 0, decodes, context)
        bucket = self._buckets.fit(min(decodes, self._config.max_num_seqs), tokens)
        mean = context // max(decodes, 1)
        return self._costs.seconds(StepFeatures(tokens, pairs, rows, decodes, context, bucket, mean, seen))

    # --- how good it is ---------------------------------------------------------------------------------------

    def note(self, predicted_s: float, measured_s: float) -> None:
        """A forecast, uncorrected, has come true or not."""
        if predicted_s <= 0.0:
            return
        ratio = measured_s / predicted_s
        self._recent.append(ratio)
        insort(self._ratios, ratio)
        if len(self._recent) > WINDOW:
            del self._ratios[bisect_left(self._ratios, self._recent.popleft())]

    def quantile(self, share: float) -> float:
        """What forecasts have to be multiplied by so that this share of them covers what happens: the nearest rank."""
        if len(self._ratios) < ENOUGH:
            return 1.0
        return self._ratios[min(int(share * len(self._ratios)), len(self._ratios) - 1)]

    @property
    def mean_error(self) -> float | None:
        """Mean of |forecast / measured - 1| over the last forecasts; None before there are any."""
        errors = [abs(1.0 / ratio - 1.0) for ratio in self._ratios if ratio > 0.0]
        return sum(errors) / len(errors) if errors else None
