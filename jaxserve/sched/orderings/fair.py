"""Weighted fair over tenants: the one served least, relative to its weight, is next (VTC, Sheng et al. 2024).

Every tenant has a counter. A prompt token adds `fair_input_weight`, an output token `fair_output_weight`, divided by
the tenant's weight; the smallest counter goes first, and within a tenant first come, first served. For two tenants that
always have requests waiting the difference of their counters stays below 2 max(input weight x longest prompt, output
weight x tokens in the KV pool), however long they run.

Neither credit nor debt is banked. A tenant of which nothing waits lacks nothing: when something of it waits again, its
counter is lifted to the smallest one among the tenants that wait. If no other tenant waits, what was served took
nothing from any of them, and all counters are made equal. A tenant that a limit of its own keeps out is lifted as well.

`fairness = "time"` counts predicted seconds of the device instead: each tenant's rows as they would cost alone, scaled
to what the step costs. Tokens computed again after a preemption count once in tokens, and again in time.
"""

from collections.abc import Collection

from jaxserve.core.plan import Row
from jaxserve.core.sequence import Sequence
from jaxserve.core.step_record import ScheduledStep
from jaxserve.costs.model import StepFeatures
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext


class WeightedFair(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        config = context.config
        self._tenants, self._costs, self._buckets = context.tenants, context.costs, context.buckets
        self._input, self._output = config.fair_input_weight, config.fair_output_weight
        self._by_time = config.fairness == "time"
        self.counters: dict[str, float] = {}

    def key(self, sequence: Sequence) -> float:
        return 0.0

    def rank(self, tenant: str) -> float:
        return self.counters.get(tenant, 0.0)

    def lead(self, tenant: str, other: str) -> float:
        gap = (self.rank(other) - self.rank(tenant)) * self._tenants[tenant].weight
        return gap / self._cost_of_a_token() if gap > 0.0 else 0.0

    def _cost_of_a_token(self) -> float:
        """What a prompt token adds to a counter, of a tenant of weight 1."""
        if not self._by_time:
            return self._input
        tokens = self._buckets.max_prefill_tokens
        return self._costs.seconds(StepFeatures.of_chunk(0, tokens, self._buckets.fit(0, tokens))) / tokens

    def reactivated(self, tenant: str, waiting: Collection[str]) -> None:
        if waiting:
            self._lift(tenant, waiting)
        else:
            self.counters = dict.fromkeys([*self.counters, tenant], max(self.counters.values(), default=0.0))

    def held_back(self, tenants: Collection[str], waiting: Collection[str]) -> None:
        if others := [tenant for tenant in waiting if tenant not in tenants]:
            for tenant in tenants:
                self._lift(tenant, others)

    def _lift(self, tenant: str, others: Collection[str]) -> None:
        self.counters[tenant] = max(self.rank(tenant), min(map(self.rank, others)))

    def planned(self, step: ScheduledStep) -> None:
        for tenant, served in (self._seconds(step) if self._by_time else self._tokens(step)).items():
            self.counters[tenant] = self.rank(tenant) + served / self._tenants[tenant].weight

    def _tokens(self, step: ScheduledStep) -> dict[str, float]:
        served: dict[str, float] = {}
        for s in step.decodes:
            served[s.tenant] = served.get(s.tenant, 0.0) + self._output
        for s, row in zip(step.prefills, step.plan.prefills, strict=True):
            inputs = min(row.start + row.length, s.num_prompt) - max(row.start, s.num_charged)
            s.num_charged = max(s.num_charged, row.start + row.length)
            served[s.tenant] = served.get(s.tenant, 0.0) + self._input * max(inputs, 0) + self._output * row.wants.token
        return served

    def _seconds(self, step: ScheduledStep) -> dict[str, float]:
        plan, rows = step.plan, dict[str, tuple[list[Row], list[Row]]]()
        for s, row in zip(step.decodes, plan.decodes, strict=True):
            rows.setdefault(s.tenant, ([], []))[0].append(row)
        for s, row in zip(step.prefills, plan.prefills, strict=True):
            rows.setdefault(s.tenant, ([], []))[1].append(row)
        alone = {
            tenant: self._costs.seconds(StepFeatures.of_rows(decodes, prefills, plan.bucket))
            for tenant, (decodes, prefills) in rows.items()
        }
        scale = self._costs.seconds(StepFeatures.of(plan)) / sum(alone.values()) if sum(alone.values()) else 0.0
        return {tenant: seconds * scale for tenant, seconds in alone.items()}
