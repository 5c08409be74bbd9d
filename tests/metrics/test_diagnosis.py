"""The doctor on servers ill in one way each, on the virtual clock: it names that cause, and of a well one none."""

from contextlib import suppress
from typing import Any

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.errors import TooBusy
from jaxserve.core.events import Refused
from jaxserve.core.step_record import Compilation, StepRecord
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.metrics.diagnosis import diagnose
from jaxserve.metrics.engine_metrics import EngineMetrics
from jaxserve.metrics.finding import Cause, Finding
from jaxserve.metrics.history import STEPS
from jaxserve.metrics.snapshot import take
from jaxserve.metrics.view import Seen, view
from tests.engine.conftest import build_engine, request

COST = FormulaCost(
    source="test", overhead_s=0.004, weights_s=0.0, token_s=0.0001, pair_s=0.0, context_s=0.0, row_s=0.0, padded=True
)


class Ward:
    """An engine on a virtual clock, whose steps take what COST says, times `slowness`, which may change."""

    def __init__(self, slowness: float = 1.0, **settings: Any) -> None:
        self.slowness = slowness
        self._sent = 0
        self.clock = VirtualClock(1.0)
        self.engine: Engine = build_engine(
            clock=self.clock, overlap=False, costs=StepCosts(COST, learns=False), **settings
        )
        self.metrics = EngineMetrics()
        self.engine.observers.append(self.metrics)
        submit = self.engine.fake.submit  # type: ignore[attr-defined]

        def timed(plan):
            self.clock.advance(self.slowness * (0.004 + 0.0001 * plan.bucket.tokens))
            return submit(plan)

        self.engine.fake.submit = timed  # type: ignore[attr-defined]
        self.compilations: list[Compilation] = []

    def serve(self, arrivals: list[tuple[float, Any]], until_s: float = 1e9) -> None:
        """(seconds from now, fields of the request), in order; stops at `until_s` from now, whatever still waits."""
        start, left = self.clock.now(), list(arrivals)
        while left or self.engine.has_work:
            if self.clock.now() - start > until_s:
                return
            while left and start + left[0][0] <= self.clock.now():
                at, fields = left.pop(0)
                prompt = [i % 97 for i in range(fields.pop("prompt"))]
                self._sent += 1
                with suppress(TooBusy):
                    self.engine.add(request(f"r{self._sent}", prompt, arrival_s=start + at, **fields))
            if self.engine.has_work:
                self.engine.step()
            elif left:
                self.clock.sleep_until(start + left[0][0])

    def findings(
        self, round_trip_s: float = 0.0, receive_s: float = 0.0, blocked_s: float = 0.0, local: bool = False
    ) -> list[Finding]:
        scheduler = self.engine.scheduler
        shot = take(scheduler, self.clock.now())
        content, _ = view(shot, self.metrics, scheduler.journal, scheduler.tenants, scheduler.config, Seen())
        about = {
            "compilations": [done._asdict() for done in self.compilations],
            "http": {"calls": 80, "receive_s": receive_s, "blocked_s": blocked_s, "local": 80 if local else 3},
            "failures": [],
        }
        return diagnose(about | content, round_trip_s, local=local)

    def causes(self, **of_the_way: Any) -> list[Cause]:
        return [finding.cause for finding in self.findings(**of_the_way)]


def stream(count: int, every_s: float, **fields: Any) -> list[tuple[float, Any]]:
    return [(i * every_s, {"prompt": 8, "max_tokens": 8} | fields) for i in range(count)]


OBJECTIVES = {"ttft_slo_s": 0.2, "tpot_slo_s": 0.05}


@pytest.mark.parametrize("objectives", [OBJECTIVES, {}])
@pytest.mark.parametrize("every_s", [0.01, 0.03, 0.3])
def test_a_healthy_server_has_nothing(objectives: dict[str, float], every_s: float) -> None:
    ward = Ward(prefix=False)
    ward.serve(stream(80, every_s, **objectives))
    assert ward.causes(round_trip_s=0.002, receive_s=0.002, blocked_s=0.001) == []


def test_of_few_requests_nothing_is_said() -> None:
    ward = Ward()
    ward.serve(stream(5, 0.1, ttft_slo_s=0.0001))
    assert ward.causes() == []


@pytest.mark.parametrize("objectives", [OBJECTIVES, {}])
def test_queueing(objectives: dict[str, float]) -> None:
    ward = Ward(max_num_seqs=2, prefix=False)
    ward.serve(stream(120, 0.004, max_tokens=20, **objectives), until_s=3.0)
    assert ward.causes()[0] is Cause.QUEUEING
    ward.serve([])
    assert ward.causes()[0] is Cause.QUEUEING, "also when the crowd has gone"


def test_longer_prompts() -> None:
    ward = Ward(prefix=False)
    arrivals = [
        (i * 0.5, {"prompt": 240 if i % 10 == 9 else 8, "max_tokens": 4, "ttft_slo_s": 0.05}) for i in range(60)
    ]
    ward.serve(arrivals)
    assert ward.causes() == [Cause.LONG_PROMPTS]


def test_kv_pressure() -> None:
    ward = Ward(blocks=12, prefix=False)
    ward.serve(stream(150, 0.02, prompt=38, max_tokens=16, **OBJECTIVES), until_s=1.5)
    assert ward.causes()[0] is Cause.KV_PRESSURE
    ward.serve([])
    assert ward.causes()[0] is Cause.KV_PRESSURE, "also when the crowd has gone"


def test_preemption() -> None:
    ward = Ward(blocks=16, prefix=False, watermark=0.0)
    ward.serve(stream(60, 0.08, prompt=8, max_tokens=56, ttft_slo_s=15.0, tpot_slo_s=0.0065))
    assert ward.causes() == [Cause.PREEMPTION]


def test_padding() -> None:
    shapes = {"decode_buckets": (256,), "prefill_buckets": (512,), "mixed_decode_buckets": (256,)}
    ward = Ward(prefix=False, buckets=shapes, max_num_batched_tokens=512)
    ward.serve(stream(60, 0.5, ttft_slo_s=0.02, tpot_slo_s=0.02))
    assert ward.causes() == [Cause.PADDING]


def test_recompilation() -> None:
    ward = Ward()
    ward.serve(stream(80, 0.3, **OBJECTIVES))
    ward.compilations.append(Compilation(ward.clock.now(), 0.9))
    assert ward.causes() == [Cause.RECOMPILATION]
    ward.serve(stream(700, 0.5, **OBJECTIVES))
    assert ward.causes() == [], "it is not what happens now"


def test_slow_steps() -> None:
    ward = Ward(slowness=5.0, prefix=False)
    ward.serve(stream(60, 0.5, ttft_slo_s=0.02, tpot_slo_s=0.02))
    assert ward.causes() == [Cause.SLOW_STEPS]
    ward.slowness = 1.0
    ward.serve(stream(100, 0.5, ttft_slo_s=0.02, tpot_slo_s=0.02))
    assert len(ward.metrics.history.steps) == STEPS, "more steps have run since than are kept one by one"
    assert ward.causes() == [Cause.SLOW_STEPS]
    ward.serve(stream(700, 0.5, ttft_slo_s=0.02, tpot_slo_s=0.02))
    assert ward.causes() == [], "it is over"


def test_the_network() -> None:
    ward = Ward()
    ward.serve(stream(80, 0.3, **OBJECTIVES))
    assert ward.causes(round_trip_s=0.2) == [Cause.NETWORK]
    assert ward.causes(receive_s=0.3) == ward.causes(blocked_s=0.3) == [Cause.NETWORK]
    assert ward.causes(round_trip_s=0.2, local=True) == ward.causes(receive_s=0.3, local=True) == [Cause.BUSY_HOST]


def test_those_who_gave_up_count() -> None:
    ward = Ward(max_num_seqs=2, prefix=False)
    ward.serve(stream(40, 0.3, ttft_slo_s=0.2))
    assert ward.causes() == []
    ward.serve([*stream(2, 0.0, max_tokens=200), *stream(20, 0.001, ttft_slo_s=0.2)], until_s=0.7)
    for sequence in list(ward.engine.scheduler.waiting):
        ward.engine.abort(sequence.request.id)
    ward.serve([])
    assert ward.causes() == [Cause.QUEUEING]


def test_slow_without_a_known_cause_is_said() -> None:
    ward = Ward(prefix=False)
    ward.serve(stream(80, 0.3, ttft_slo_s=0.001))
    assert ward.causes() == [Cause.UNEXPLAINED]


def test_a_quiet_server_is_judged_by_its_last_busy_minutes() -> None:
    ward = Ward(max_num_seqs=2, prefix=False)
    ward.serve(stream(120, 0.004, max_tokens=20, **OBJECTIVES))
    ward.clock.advance(7200.0)
    assert ward.causes()[0] is Cause.QUEUEING
    ward.serve(stream(12, 60.0, **OBJECTIVES))
    assert ward.causes() == [], "twelve minutes with one request each: the last ten are enough to judge by"


# --- what tenants do to each other ------------------------------------------------------------------------------------


PAIR = Tenants([Tenant(name="flood"), Tenant(name="quiet")])


def both(*streams: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    return sorted((arrival for one in streams for arrival in one), key=lambda arrival: arrival[0])


def the_one(ward: Ward, cause: Cause) -> Finding:
    (found,) = [finding for finding in ward.findings() if finding.cause is cause]
    return found


def test_a_starved_tenant() -> None:
    ward = Ward(tenants=PAIR, max_num_seqs=4, prefix=False)
    flood = stream(800, 0.01, tenant="flood", max_tokens=20)
    ward.serve(both(flood, stream(20, 0.5, tenant="quiet")), until_s=8.0)
    assert ward.causes()[0] is Cause.STARVATION
    found = the_one(ward, Cause.STARVATION)
    assert "and got 1% of the service" in found.evidence and "gives it 50%" in found.evidence
    assert "tenant 'flood' got the most" in found.evidence and "for order" in found.evidence
    assert "--ordering fair; now fcfs" in found.advice


def test_with_fair_ordering_neither_of_two_floods_is_starved_and_fair_is_not_advised() -> None:
    ward = Ward(tenants=PAIR, max_num_seqs=4, prefix=False, ordering="fair")
    ward.serve(
        both(*(stream(400, 0.02, tenant=name, max_tokens=20, **OBJECTIVES) for name in ("flood", "quiet"))), until_s=8.0
    )
    assert Cause.STARVATION not in ward.causes()
    assert "fair" not in the_one(ward, Cause.QUEUEING).advice


def test_a_tenant_whose_neighbour_holds_every_slot() -> None:
    ward = Ward(slowness=10.0, tenants=PAIR, max_num_seqs=2, prefix=False, ordering="fair", preempt_for_admission=False)
    ward.serve(both(stream(2, 0.0, tenant="flood", max_tokens=240), stream(9, 0.1, tenant="quiet")), until_s=8.0)
    found = the_one(ward, Cause.STARVATION)
    assert "tenant 'quiet'" in found.evidence and "got 0%" in found.evidence and "2 of tenant 'flood'" in found.evidence
    assert "preempt_for_admission, now off" in found.advice and "--ordering" not in found.advice


def test_a_lower_class_that_gets_nothing_is_told_that_this_is_configured() -> None:
    tenants = Tenants([Tenant(name="flood"), Tenant(name="quiet", priority=1)])
    ward = Ward(tenants=tenants, max_num_seqs=4, prefix=False, ordering="priority")
    flood = stream(800, 0.01, tenant="flood", max_tokens=20)
    ward.serve(both(flood, stream(20, 0.5, tenant="quiet")), until_s=8.0)
    advice = the_one(ward, Cause.STARVATION).advice
    assert "its class (1) goes behind that of 'flood' (0), as configured" in advice and "ageing_s (now 60)" in advice


def test_a_tenant_over_its_rate() -> None:
    ward = Ward(tenants=Tenants([Tenant(name="flood", requests_per_s=2.0), Tenant(name="quiet")]))
    ward.serve(both(stream(100, 0.1, tenant="flood"), stream(20, 0.5, tenant="quiet")))
    assert ward.causes() == [Cause.REFUSALS]
    found = the_one(ward, Cause.REFUSALS)
    assert "refused as rate_limit: 7" in found.evidence and "of tenant 'flood' (7" in found.evidence
    assert "'quiet'" not in found.evidence and "requests_per_s of tenant 'flood' (now 2)" in found.advice


def test_a_full_queue_names_who_fills_it() -> None:
    ward = Ward(tenants=PAIR, max_num_seqs=2, max_waiting=20, prefix=False)
    ward.serve(both(stream(900, 0.001, tenant="flood"), stream(30, 0.03, tenant="quiet")), until_s=0.9)
    found = the_one(ward, Cause.REFUSALS)
    assert "refused as queue_full" in found.evidence and "of tenant 'flood' wait" in found.evidence
    assert ("keep tenant 'flood' from filling the queue" in found.advice) == ("of tenant 'quiet'" in found.evidence)
    assert "raise max_waiting (now 20)" in found.advice


def test_admission_that_refuses_the_promised_tenant() -> None:
    tenants = Tenants([Tenant(name="chat", ttft_slo_s=0.1), Tenant(name="flood", priority=1)])
    ward = Ward(tenants=tenants, prefix=False, admission="slo")
    ward.serve(both(stream(60, 0.1, tenant="chat"), stream(60, 0.1, tenant="flood")))
    assert ward.causes() == []
    for _ in range(200):  # as with a forecast that is wrong
        ward.metrics.observe(StepRecord([Refused("chat", "slo")], ward.clock.now()))
    found = the_one(ward, Cause.REFUSALS)
    assert "refused as slo: 200 of tenant 'chat' (77% of what came); objectives: 'chat' 0.1 s" in found.evidence
    assert "were served: 'flood' 60" in found.evidence and "first token within" in found.evidence
    assert "bound tenant 'flood'" in found.advice and "the forecast is too late" in found.advice
    assert "--admission" not in found.advice


def test_admission_that_refuses_what_is_too_much() -> None:
    ward = Ward(tenants=Tenants([Tenant(name="chat", ttft_slo_s=0.1)]), max_num_seqs=2, prefix=False, admission="slo")
    ward.serve(stream(400, 0.005, tenant="chat"))
    found = the_one(ward, Cause.REFUSALS)
    assert "refused as slo" in found.evidence and "bound tenant" not in found.advice and "serve more" in found.advice


def test_priorities_that_bodies_raise() -> None:
    tenants = Tenants([Tenant(name="chat"), Tenant(name="flood", priority=1, may_raise_priority=True)])
    ward = Ward(tenants=tenants, max_num_seqs=4, prefix=False, ordering="priority")
    flood = stream(800, 0.01, tenant="flood", max_tokens=20, priority=-100)
    ward.serve(both(flood, stream(20, 0.5, tenant="chat")), until_s=8.0)
    found = the_one(ward, Cause.RAISED_PRIORITIES)
    assert "requests of tenant 'flood' asked for a priority down to -100" in found.evidence
    assert "went before its class (1)" in found.evidence and "at the cost of 'chat'" in found.evidence
    assert "may_raise_priority = false for tenant 'flood'" in found.advice
    assert "tenant 'chat'" in the_one(ward, Cause.STARVATION).evidence


def test_lowering_ones_own_priority_is_nothing() -> None:
    ward = Ward(tenants=PAIR, ordering="priority")
    ward.serve(both(stream(80, 0.1, tenant="flood", priority=5), stream(20, 0.4, tenant="quiet")))
    assert ward.causes() == []


def test_objectives_of_requests_own_are_told_apart() -> None:
    ward = Ward(tenants=Tenants([Tenant(name="batch", ttft_slo_s=8.0, tpot_slo_s=1.0), Tenant(name="chat")]))
    ward.serve(both(stream(80, 0.1, tenant="batch", ttft_slo_s=0.0001), stream(20, 0.4, tenant="chat")))
    assert ward.causes() == [Cause.OWN_OBJECTIVES]
    found = the_one(ward, Cause.OWN_OBJECTIVES)
    assert "80 of 80 requests of tenant 'batch' that brought a ttft_slo_s" in found.evidence
    assert "down to 0.0001 s" in found.evidence and "what the tenant was promised, 8 s, was met" in found.evidence


def test_what_is_on_is_not_advised() -> None:
    ward = Ward(tenants=PAIR, max_num_seqs=2, prefix=False, ordering="fair", admission="slo", tiers=(8, 0, 0))
    ward.serve(both(*(stream(300, 0.004, tenant=name, max_tokens=20) for name in ("flood", "quiet"))), until_s=3.0)
    advice = " ".join(finding.advice for finding in ward.findings())
    assert "--ordering" not in advice and "--admission" not in advice and "offload" not in advice
    assert "max_num_seqs (now 2)" in advice
