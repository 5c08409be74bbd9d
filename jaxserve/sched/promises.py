"""When its first token is promised: forecast as a request comes, and refused at once if that would be too late.

The forecast rolls the live queue forward through the cost model (`sched.forecast`): the step under way, every prompt
that goes before, and its own, less what the prefix cache knows of it.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import TooBusy
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.forecast import Forecast
from jaxserve.sched.roster import Roster
from jaxserve.sched.tenant_ledger import TenantLedger

PROMISE = 0.9
"""Share of its objective that a request's predicted first token may take: the rest is for the prediction's error."""
HORIZON = 4.0
"""How far a forecast looks ahead, in objectives."""


class Promises:
    def __init__(
        self,
        config: SchedulerConfig,
        roster: Roster,
        ledger: TenantLedger,
        blocks: BlockManager,
        costs: StepCosts,
        forecast: Forecast,
    ) -> None:
        self._refuses = config.admission == "slo"
        self._roster, self._ledger, self._blocks = roster, ledger, blocks
        self._costs, self._forecast = costs, forecast

    def make(self, sequence: Sequence, now: float) -> None:
        """Forecast its first token; with `admission = "slo"` TooBusy when that is too late to be worth queueing for."""
        slo = sequence.ttft_slo_s
        if slo is None or not self._costs.ready:
            return
        waited = now - sequence.request.arrival_s if sequence.request.arrival_s else 0.0
        sequence.forecast_s = self._first_token_s(sequence, now, HORIZON * slo)
        expected = waited + sequence.forecast_s * self._forecast.quantile(0.5)
        sequence.predicted_ttft_s = expected
        sequence.predicted_p90_s = waited + sequence.forecast_s * self._forecast.quantile(0.9)
        if self._refuses and expected > PROMISE * slo:
            wait_s = max(expected - PROMISE * slo, self._costs.last_s)
            raise TooBusy(
                f"the first token would come after {expected:.2f} s and the objective is {slo:g} s: "
                f"try again in {wait_s:.2f} s",
                "slo",
                wait_s,
            )

    def kept(self, sequence: Sequence, now: float) -> None:
        """Its first token is there: the next forecasts learn from it."""
        if sequence.forecast_s:
            self._forecast.note(sequence.forecast_s, now - sequence.queued_s)

    def _first_token_s(self, sequence: Sequence, now: float, horizon_s: float) -> float:
        """Seconds from now to its first token: what is under way, what goes before it, and its own prompt."""
        roster = self._roster
        ahead = [s.num_uncomputed for s in roster.begun() if roster.precedes(s, sequence)]
        ahead += [s.num_uncomputed for s in roster.waiting if roster.precedes(s, sequence)]
        decodes = [s.num_computed for s in roster.running if s.decoding]
        own = sequence.num_prompt - self._blocks.num_cached(sequence)
        outputs = self._ledger.outputs.mean(default=float(max(sequence.max_len - sequence.num_prompt, 1)))
        return self._costs.under_way_s(now) + self._forecast.first_token_s(
            own, ahead, len(decodes), sum(decodes), max(outputs, 1.0), horizon_s
        )
