"""When a request's first token is expected: forecast as it is queued, and compared with what happens.

A forecast takes the live queue through the cost model (`sched.forecast`): the steps in flight, every prompt that goes
before, and the request's own, less what the prefix cache holds of it. With `admission = "slo"` a request whose first
token would come too late is refused at once.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import TooBusy
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, TtftForecast
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.forecast import Forecast
from jaxserve.sched.roster import Roster
from jaxserve.sched.tenant_ledger import TenantLedger

ADMITTED_SHARE = 0.9
"""Share of its objective that a request's expected first token may take: the rest is for the forecast's error."""
HORIZON = 4.0
"""How far a forecast looks ahead, in objectives."""


class TtftForecasts:
    """Writes `Sequence.forecast`."""

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

    def forecast(self, sequence: Sequence, now: float) -> None:
        """Forecast the first token of a sequence with an objective. Raises TooBusy if it would be refused for it."""
        slo_s = sequence.ttft_slo_s
        if slo_s is None or not self._costs.ready:
            return
        waited_s = now - sequence.request.arrival_s if sequence.request.arrival_s else 0.0
        model_s = self._first_token_s(sequence, now, HORIZON * slo_s)
        expected_s = waited_s + model_s * self._forecast.quantile(0.5)
        sequence.forecast = TtftForecast(model_s, expected_s, waited_s + model_s * self._forecast.quantile(0.9))
        if self._refuses and expected_s > ADMITTED_SHARE * slo_s:
            wait_s = max(expected_s - ADMITTED_SHARE * slo_s, self._costs.last_s)
            raise TooBusy(
                f"the first token would come after {expected_s:.2f} s and the objective is {slo_s:g} s: "
                f"try again in {wait_s:.2f} s",
                "slo",
                wait_s,
            )

    def observe(self, sequence: Sequence, now: float) -> None:
        """The sequence has its first token: correct later forecasts by the error of its own."""
        if sequence.forecast is not None:
            self._forecast.observe(sequence.forecast.model_s, now - sequence.queued_s)

    def _first_token_s(self, sequence: Sequence, now: float, horizon_s: float) -> float:
        """Seconds from now to its first token: the steps in flight, the prompts before it, and its own."""
        roster = self._roster
        ahead = [s.num_uncomputed for s in roster.in_prefill() if roster.precedes(s, sequence)]
        ahead += [s.num_uncomputed for s in roster.waiting if roster.precedes(s, sequence)]
        contexts = [s.num_computed for s in roster.running if s.decoding]
        own = sequence.num_prompt - self._blocks.num_cached(sequence)
        outputs = self._ledger.outputs.mean(default=float(max(sequence.max_len - sequence.num_prompt, 1)))
        return self._costs.in_flight_s(now) + self._forecast.first_token_s(
            own, ahead, len(contexts), sum(contexts), max(outputs, 1.0), horizon_s
        )
