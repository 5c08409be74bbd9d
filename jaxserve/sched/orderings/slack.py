"""Least slack to the first token's objective; under load, more and more shortest first.

    key = deadline + alpha x predicted time of what is left of the prompt

alpha = 0 is earliest deadline first, which is best while every request can be served in time. When the queue holds
more work than its deadlines leave room for, some requests will be late: a large alpha makes those the few with much
work instead of the many with little (Niyama/QoServe, 2025). A request without an objective is due `NO_OBJECTIVE_S`
after it was queued.

    overload = time of all waiting prompts / median time left to their deadlines
    alpha    = the largest of `ALPHAS` up to `ALPHA_PER_OVERLOAD` x overload; 0 below `LEAST_OVERLOAD`
"""

from jaxserve.core.sequence import Sequence
from jaxserve.costs.model import StepFeatures
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext
from jaxserve.sched.policies.policy import Load

NO_OBJECTIVE_S = 60.0
ALPHAS = (0.0, 1.0, 4.0, 16.0)
"""Few values instead of a continuous one: each change sorts the queue again."""
ALPHA_PER_OVERLOAD = 8.0
LEAST_OVERLOAD = 0.5
LEAST_ROOM = 0.1
"""The time left counts as at least this share of the work, also when deadlines have passed: overload is at most 10."""
TOKEN_S_CHANGE = 0.2
"""Keys are computed again when the predicted time of a token has changed by this share."""
REFRESH_STEPS = 16
"""Steps between two looks at the load."""
PROBE_TOKENS = 512
"""Chunk whose predicted time gives the time of one token."""


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
        overload = _overload(load, token_s)
        alpha = max(a for a in ALPHAS if a <= ALPHA_PER_OVERLOAD * overload) if overload >= LEAST_OVERLOAD else 0.0
        if alpha != self._alpha or abs(token_s - self._token_s) > TOKEN_S_CHANGE * token_s:
            self._alpha, self._token_s = alpha, token_s
            self.epoch += 1

    def _seconds_a_token(self) -> float:
        tokens = min(PROBE_TOKENS, self._buckets.max_prefill_tokens)
        features = StepFeatures.of_chunk(0, tokens, self._buckets.fit(0, tokens))
        return self._costs.seconds(features) / tokens


def _overload(load: Load, token_s: float) -> float:
    """Work of the waiting prompts over the median time left to their deadlines; 0 without objectives or work."""
    work_s = token_s * sum([s.num_uncomputed for s in load.waiting])
    left_s = sorted([s.queued_s + s.ttft_slo_s - load.now for s in load.waiting if s.ttft_slo_s is not None])
    if not left_s or not work_s:
        return 0.0
    return work_s / max(left_s[len(left_s) // 2], LEAST_ROOM * work_s)
