"""When a request's first token is expected: forecast as it is queued, and compared with what happens.

A forecast takes the live queue through the cost model (`sched.forecast`): the steps in flight, every prompt that goes
before, and the request's own, less what the prefix cache holds of it. It counts the slots that the request may take
from others by preemption. With `admission = "slo"` a request whose first token would come too late is refused at once.

A tenant's promise is not broken for work of a lower class, or work that was promised nothing. If the first token would
be late in the queue as it is, the forecast is made again without the work that yields (`Roster.yields_to`):

    in the queue as it is    without that work    the request
    in time                                       is queued
    late                     in time              is queued and expedited: that work comes after it
    late                     late                 is refused

A request's own objective decides whether it is refused. Other work yields only for the objective of its tenant, or
of the engine.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import TooBusy
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, TtftForecast
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.forecast import Forecast
from jaxserve.sched.forecast_errors import ForecastErrors
from jaxserve.sched.roster import Roster
from jaxserve.sched.shares import Shares
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.victims import ENDING_TOKENS, may_wait, remaining

ADMITTED_SHARE = 0.9
"""Share of its objective that a request's expected first token may take: the rest is for the forecast's error."""
OTHER_PACE = 1.5
"""The error of a forecast says nothing about later ones if the pace has changed by this factor meanwhile."""
HORIZON = 4.0
"""How far a forecast looks ahead, in objectives."""


class TtftForecasts:
    """Writes `Sequence.forecast`."""

    def __init__(
        self,
        config: SchedulerConfig,
        roster: Roster,
        ledger: TenantLedger,
        shares: Shares,
        blocks: BlockManager,
        costs: StepCosts,
        forecast: Forecast,
    ) -> None:
        self._refuses = config.admission == "slo"
        self._preempts, self._slots = config.preempt_for_admission, config.max_num_seqs
        self._roster, self._ledger, self._shares, self._blocks = roster, ledger, shares, blocks
        self._costs, self._forecast = costs, forecast
        self._errors: dict[str, ForecastErrors] = {}  # by tenant

    def forecast(self, sequence: Sequence, now: float) -> None:
        """Forecast the first token of a sequence with an objective. Raises TooBusy if it would be refused for it."""
        slo_s = sequence.ttft_slo_s
        self._costs.forget_pace(now)
        if slo_s is None or not self._costs.ready:
            return
        self._shares.refresh(self._roster.running, self._ledger.active | {sequence.tenant})
        errors = self._errors.setdefault(sequence.tenant, ForecastErrors())
        usual, most = errors.quantile(0.5, now), errors.quantile(0.9, now)
        waited_s = now - sequence.request.arrival_s if sequence.request.arrival_s else 0.0
        model_s = self._first_token_s(sequence, now, HORIZON * slo_s)
        late_s = ADMITTED_SHARE * slo_s
        if self._refuses and waited_s + model_s * usual > late_s:
            expedited = self._broken(sequence, waited_s + model_s * usual)
            if expedited:
                model_s = self._first_token_s(sequence, now, HORIZON * slo_s, expedited=True)
            expected_s = waited_s + model_s * usual
            if expected_s > late_s and not (self._none_open(sequence.tenant) and errors.take_trial(now)):
                raise _refusal(expected_s, slo_s, max(expected_s - late_s, self._costs.last_s))
            if expedited:
                self._roster.expedite(sequence)
        expected_s, p90_s = waited_s + model_s * usual, waited_s + model_s * most
        sequence.forecast = TtftForecast(model_s, expected_s, p90_s, self._costs.pace)

    def observe(self, sequence: Sequence, now: float) -> None:
        """The sequence has its first token: correct later forecasts of its tenant by the error of its own."""
        self._roster.served(sequence)
        forecast, slo_s = sequence.forecast, sequence.ttft_slo_s
        if forecast is None or slo_s is None:
            return
        errors = self._errors[sequence.tenant]
        if 1.0 / OTHER_PACE < self._costs.pace / forecast.pace < OTHER_PACE:
            errors.observe(forecast.model_s, now - sequence.queued_s, now)
        if self._refuses and forecast.expected_s > ADMITTED_SHARE * slo_s:
            errors.tried(late=now - (sequence.request.arrival_s or sequence.queued_s) > slo_s)

    def _broken(self, sequence: Sequence, expected_s: float) -> bool:
        """Whether this first token would come too late for what the sequence's tenant was promised."""
        promised_s, slo_s = sequence.promised_ttft_s, sequence.ttft_slo_s
        return promised_s is not None and slo_s is not None and expected_s > ADMITTED_SHARE * max(promised_s, slo_s)

    def _none_open(self, tenant: str) -> bool:
        """Whether no request of the tenant is on the way to a first token that was forecast."""
        live = (*self._roster.running, *self._roster.waiting)
        return not any(s.forecast is not None and s.first_token_s is None and s.tenant == tenant for s in live)

    def _first_token_s(self, sequence: Sequence, now: float, horizon_s: float, expedited: bool = False) -> float:
        """Seconds from now to its first token: the steps in flight, the prompts before it, and its own.

        `expedited`: work that yields to it comes after it.
        """
        roster = self._roster
        ahead = roster.ahead(sequence, without_lower=expedited)
        contexts = [s.num_computed for s in roster.running if s.decoding]
        own = sequence.num_prompt - self._blocks.num_cached(sequence)
        outputs = self._ledger.outputs.mean(default=float(max(sequence.max_len - sequence.num_prompt, 1)))
        takes = self._takes(sequence, expedited)
        waits_s = self._costs.in_flight_s(now) + (self._waits_for_slot_s(sequence, now) if takes else 0.0)
        return waits_s + self._forecast.first_token_s(
            own, ahead, len(contexts), sum(contexts), max(outputs, 1.0), horizon_s, takes
        )

    def _waits_for_slot_s(self, sequence: Sequence, now: float) -> float:
        """How long it waits for a sequence that is about to end instead of taking a slot (`sched.victims`)."""
        ending = min(map(remaining, self._roster.running), default=0)
        wait_s = ending * self._costs.last_s
        taken = len(self._roster.running) >= self._slots
        return wait_s if taken and ending <= ENDING_TOKENS and may_wait(sequence, now + wait_s) else 0.0

    def _takes(self, sequence: Sequence, expedited: bool) -> int:
        """Running sequences that may be preempted so that this one can be admitted."""
        roster, shares, running = self._roster, self._shares, self._roster.running
        if not self._preempts or len(running) + len(roster.waiting) < self._slots:
            return 0
        needed = self._blocks.blocks_for(len(sequence.tokens) + 1)
        borrowed = shares.to_take_back(sequence, needed, running, slot=True, blocks=False)
        takes = set[Sequence](borrowed if shares.fair and roster.preempts else ())  # as `Preempter.for_admission`
        for s in (*borrowed, *shares.of_lower_class(sequence, running)):
            behind = roster.came_first(sequence, s) or (expedited and roster.yields_to(s, sequence))
            if behind and roster.preemptible(s):
                takes.add(s)
        return len(takes)


def _refusal(expected_s: float, slo_s: float, wait_s: float) -> TooBusy:
    return TooBusy(
        f"the first token would come after {expected_s:.2f} s and the objective is {slo_s:g} s: "
        f"try again in {wait_s:.2f} s",
        "slo",
        wait_s,
    )
