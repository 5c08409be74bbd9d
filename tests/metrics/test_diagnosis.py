"""The doctor on servers ill in one way each, on the virtual clock: it names that cause, and of a well one none."""

from typing import Any

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.step_record import Compilation
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.metrics.diagnosis import Cause, diagnose
from jaxserve.metrics.engine_metrics import EngineMetrics
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
                self.engine.add(request(f"r{len(left)}", prompt, arrival_s=start + at, **fields))
            if self.engine.has_work:
                self.engine.step()
            else:
                self.clock.sleep_until(start + left[0][0])

    def causes(self, round_trip_s: float = 0.0, receive_s: float = 0.0, blocked_s: float = 0.0) -> list[Cause]:
        shot, journal = take(self.engine.scheduler, self.clock.now()), self.engine.scheduler.journal
        content, _ = view(shot, self.metrics.history, self.metrics.counts, journal, Tenants(), Seen())
        about = {
            "max_num_seqs": 8,
            "compilations": [done._asdict() for done in self.compilations],
            "http": {"calls": 80, "receive_s": receive_s, "blocked_s": blocked_s},
        }
        return [finding.cause for finding in diagnose(about | content, round_trip_s)]


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
