"""Least slack to the first token's objective; under load, more and more shortest first.

    key = deadline + alpha x predicted time of what is left of the prompt

alpha = 0 is earliest deadline first, which is best while everybody can be served in time. When the queue holds more
work than its deadlines leave room for, somebody will be late, and a large alpha makes it the few with much work
instead of the many with little (Niyama/QoServe, 2025). Without an objective a request is due `NO_OBJECTIVE_S` after it
came.
"""

from jaxserve.core.sequence import Sequence
from jaxserve.costs.model import StepFeatures
from jaxserve.sched.load import Load
from jaxserve.sched.orderings.context import OrderingContext
from jaxserve.sched.orderings.ordering import Ordering

NO_OBJECTIVE_S = 60.0
ALPHAS = (0.0, 1.0, 4.0, 16.0)
"""Steps instead of a continuous value: each change sorts the queue again."""
REFRESH_STEPS = 16
PROBE_TOKENS = 512


class LeastSlack(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._costs, self._buckets = context.costs, context.buckets
        self._step = 0
        self._alpha = 0.0
        self._token_s = 0.0

    def key(self, sequence: Sequence) -> float:
        objective = sequence.ttft_slo_s if sequence.ttft_slo_s is not None else NO_OBJECTIVE_S
        return sequence.queued_s + objective + self._alpha * self._token_s * sequence.num_uncomputed

    def refresh(self, load: Load) -> None:
        self._step += 1
        if self._step % REFRESH_STEPS or not self._costs.ready:
            return
        token_s = self._seconds_a_token()
        work = token_s * sum([s.num_uncomputed for s in load.waiting])
        room = [(s.queued_s + s.ttft_slo_s - load.now) for s in load.waiting if s.ttft_slo_s is not None]
        overload = work / max(sorted(room)[len(room) // 2], 0.1 * work) if room and work else 0.0
        alpha = max((a for a in ALPHAS if 8.0 * overload >= a), default=0.0) if overload >= 0.5 else 0.0
        if alpha != self._alpha or abs(token_s - self._token_s) > 0.2 * token_s:
            self._alpha, self._token_s = alpha, token_s
            self.epoch += 1

    def _seconds_a_token(self) -> float:
        tokens = min(PROBE_TOKENS, self._buckets.max_prefill_tokens)
        features = StepFeatures.of_chunk(0, tokens, self._buckets.fit(0, tokens))
        return self._costs.seconds(features) / tokens
