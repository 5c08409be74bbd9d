"""Counters agree with what the engine did, on the virtual clock, exactly."""

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.errors import QueueFull
from jaxserve.core.plan import MoveKind
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.engine.engine import Engine
from jaxserve.metrics.engine_metrics import EngineMetrics
from jaxserve.metrics.snapshot import SHARED, USED, take
from tests.engine.conftest import build_engine, drive, request

STEP_S = 0.01


def timed(clock: VirtualClock, **settings) -> tuple[Engine, EngineMetrics]:
    """An engine whose steps take 10 ms each, and its metrics."""
    engine = build_engine(clock=clock, overlap=False, **settings)
    metrics = EngineMetrics()
    engine.observers.append(metrics)
    submit = engine.fake.submit

    def slow(plan):
        clock.advance(STEP_S)
        return submit(plan)

    engine.fake.submit = slow
    return engine, metrics


def total(metrics: EngineMetrics, name: str) -> float:
    return sum(metrics.counts.counters[name].values())


def test_logits_that_are_not_finite_are_counted() -> None:
    engine, metrics = timed(VirtualClock())
    engine.fake.not_finite["a", 0] = 2
    for name in "ab":
        engine.add(request(name, [1, 2, 3], max_tokens=4))
    drive(engine)
    assert metrics.counts.counters["nonfinite_logits"] == {(): 1}
    assert metrics.counts.counters["request_success"] == {("error",): 1, ("length",): 1}


def test_one_request_by_hand() -> None:
    clock = VirtualClock(100.0)
    engine, metrics = timed(clock)
    engine.add(request("a", list(range(12)), max_tokens=5, arrival_s=99.5, tenant="x"))
    clock.advance(0.25)
    drive(engine)
    histograms = metrics.counts.histograms

    def only(name: str, labels: tuple[str, ...] = ()) -> float:
        assert histograms[name][labels].count == 1
        return histograms[name][labels].total

    assert only("time_to_first_token_seconds") == pytest.approx(0.5 + 0.25 + STEP_S)
    assert only("request_queue_time_seconds") == pytest.approx(0.25)
    assert only("request_prefill_time_seconds") == pytest.approx(STEP_S)
    assert only("request_decode_time_seconds") == pytest.approx(4 * STEP_S)
    assert only("request_inference_time_seconds") == pytest.approx(5 * STEP_S)
    assert only("e2e_request_latency_seconds") == pytest.approx(0.75 + 5 * STEP_S)
    assert only("request_time_per_output_token_seconds") == pytest.approx(STEP_S)
    assert only("tenant_time_to_first_token_seconds", ("default",)) == pytest.approx(0.5 + 0.25 + STEP_S)
    gaps = histograms["inter_token_latency_seconds"][()]
    assert gaps.count == 4 and gaps.total == pytest.approx(4 * STEP_S)
    assert metrics.counts.counters["request_success"] == {("length",): 1}
    assert metrics.counts.counters["step_tokens"] == {("prefill",): 12, ("decode",): 4, ("padding",): 4}
    assert metrics.counts.counters["steps"] == {("prefill",): 1, ("decode",): 4}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("tiers", [(0, 0, 0), (64, 0, 0), (0, 64, 32)])
def test_sums_under_pressure(overlap: bool, tiers: tuple[int, int, int]) -> None:
    engine = build_engine(blocks=10, overlap=overlap, tiers=tiers, prefix=False)
    metrics = EngineMetrics()
    engine.observers.append(metrics)
    for i in range(12):
        engine.add(request(f"r{i}", list(range(3 + i)), max_tokens=20))
    tokens = drive(engine)
    counters = metrics.counts.counters
    assert total(metrics, "generation_tokens") == sum(map(len, tokens.values())) == 240
    assert total(metrics, "prompt_tokens") == sum(3 + i for i in range(12))
    assert total(metrics, "request_success") == 12
    assert metrics.counts.histograms["inter_token_latency_seconds"][()].count <= 228
    preempted = total(metrics, "num_preemptions")
    assert preempted == total(metrics, "preemptions") == total(metrics, "tenant_preemptions") > 0
    assert metrics.counts.histograms["request_num_preemptions"][()].total == preempted
    assert metrics.counts.histograms["request_stalled_seconds"][()].count > 0
    planned = [plan for plan in engine.fake.plans if plan.bucket.tokens]
    assert total(metrics, "step_tokens") == sum(plan.bucket.tokens for plan in planned)
    moves = [move for plan in engine.fake.plans for move in plan.moves if move.kind is not MoveKind.DROP]
    assert total(metrics, "kv_moved_blocks") == len(moves)
    assert not metrics._last_token_s and not metrics._stalled_since and not metrics._stalled_s
    assert counters["preemptions"].keys() <= {("recompute",), ("host",), ("disk",)}


def test_objectives_are_judged_by_tenant() -> None:
    clock = VirtualClock(1.0)
    strict = Tenant(name="strict", ttft_slo_s=0.5 * STEP_S, tpot_slo_s=2 * STEP_S)
    easy = Tenant(name="easy", ttft_slo_s=1.0)
    engine, metrics = timed(clock, tenants=Tenants([strict, easy]))
    for name in ("strict", "easy", "nobody"):
        engine.add(request(name, [1, 2, 3], max_tokens=4, tenant=name))
    drive(engine)
    assert metrics.counts.counters["slo_requests"] == {
        ("strict", "ttft"): 1, ("strict", "tpot"): 1, ("easy", "ttft"): 1,
    }  # fmt: skip
    assert metrics.counts.counters["slo_requests_met"] == {
        ("strict", "ttft"): 0, ("strict", "tpot"): 1, ("easy", "ttft"): 1,
    }  # fmt: skip


def test_objectives_of_requests_have_a_series_of_their_own() -> None:
    """What a body asks for neither spoils nor embellishes what its tenant was promised."""
    clock = VirtualClock(1.0)
    tenants = Tenants([Tenant(name="x", priority=1, ttft_slo_s=5.0, tpot_slo_s=5.0), Tenant(name="free")])
    engine, metrics = timed(clock, tenants=tenants)
    tight, loose = {"ttft_slo_s": 1e-6, "tpot_slo_s": 1e-6}, {"ttft_slo_s": 100.0, "tpot_slo_s": 100.0}
    for i, asked in enumerate([{}, tight, tight, loose, {"priority": 9}, {"priority": -9}]):
        engine.add(request(f"x{i}", [1, 2, 3], max_tokens=4, tenant="x", **asked))
        engine.add(request(f"free{i}", [1, 2, 3], max_tokens=4, tenant="free", **asked))
    drive(engine)
    counted = metrics.counts.counters
    kinds = ("ttft", "tpot")
    assert counted["slo_requests"] == counted["slo_requests_met"] == {("x", kind): 4 for kind in kinds}
    own = {(tenant, kind): 3 for tenant in ("x", "free") for kind in kinds}
    assert counted["request_slo_requests"] == own
    assert counted["request_slo_requests_met"] == dict.fromkeys(own, 1)


def test_who_asked_for_less_and_gives_up_missed_nothing() -> None:
    clock = VirtualClock(1.0)
    engine, metrics = timed(clock, tenants=Tenants([Tenant(name="x", ttft_slo_s=0.5)]), max_num_seqs=1)
    engine.add(request("runs", [1, 2], max_tokens=100, tenant="x"))
    engine.step()
    engine.add(request("waits", [1, 2], tenant="x", ttft_slo_s=50.0))
    clock.advance(1.0)
    engine.abort("waits")
    engine.abort("runs")
    engine.step()
    assert ("x", "ttft") not in metrics.counts.counters["request_slo_requests"]
    assert metrics.counts.counters["slo_requests"].get(("x", "ttft"), 0) <= 1  # that which ran


def test_what_ended_early_has_no_latency() -> None:
    engine, metrics = timed(VirtualClock(1.0), max_waiting=2)
    engine.add(request("a", [1, 2]))
    engine.add(request("b", [1, 2]))
    with pytest.raises(QueueFull):
        engine.add(request("c", [1, 2]))
    engine.abort("b")
    engine.step()
    engine.fake.fail_wait.add(2)
    drive(engine)
    assert metrics.counts.counters["request_success"] == {("abort",): 1, ("error",): 1}
    assert metrics.counts.counters["admission_rejections"] == {("queue_full",): 1}
    assert ("e2e_request_latency_seconds", ()) not in metrics.counts.histograms
    assert not metrics.counts.histograms["e2e_request_latency_seconds"]


def test_who_gives_up_past_its_objective_missed_it() -> None:
    clock = VirtualClock(1.0)
    engine, metrics = timed(clock, tenants=Tenants([Tenant(name="x", ttft_slo_s=0.5)]), max_num_seqs=1)
    engine.add(request("runs", [1, 2], max_tokens=100, tenant="x"))
    for name in ("patient", "hasty"):
        engine.add(request(name, [1, 2], tenant="x"))
    engine.step()
    engine.abort("hasty")
    clock.advance(1.0)
    engine.abort("patient")
    engine.abort("runs")
    engine.step()
    assert metrics.counts.counters["slo_requests"] == {("x", "ttft"): 2}
    assert metrics.counts.counters["slo_requests_met"] == {("x", "ttft"): 1}
    (point,) = [point for point in metrics.history.points if point.seconds > 0.5]
    assert point.kind == "ttft" and point.slo_s == 0.5


def test_a_snapshot_says_who_holds_what_and_who_waits_for_what() -> None:
    engine = build_engine(blocks=20, max_num_seqs=3, overlap=False)
    for i in range(5):
        engine.add(request(f"r{i}", [*range(8), i], max_tokens=20, tenant="a"))
        engine.step()
    shot = take(engine.scheduler, 1.0, with_map=True)
    assert shot.running.total() == 3 and shot.waiting.total() == 2
    assert shot.waiting_by_reason == {"budget": 1, "order": 1}
    assert sum(shot.blocks) == len(shot.block_map) == 20
    assert shot.block_map.count(SHARED) == 1 and shot.block_map.count(USED) == shot.blocks[2] > 0
    assert [live.waits_for for live in shot.live] == ["budget", "order", None, None, None]
    drive(engine)
    assert take(engine.scheduler, 1.0).kv_usage == 0.0


def test_waiting_for_blocks_and_for_a_share() -> None:
    tenants = Tenants([Tenant(name="small", kv_max=0.3)])
    engine = build_engine(blocks=20, tenants=tenants, overlap=False, prefix=False)
    for i in range(4):
        engine.add(request(f"s{i}", list(range(20)), max_tokens=8, tenant="small"))
    engine.step()
    assert "share" in take(engine.scheduler, 0.0).waiting_by_reason
    for i in range(6):
        engine.add(request(f"d{i}", list(range(30)), max_tokens=8))
    for _ in range(6):
        engine.step()
    assert "blocks" in take(engine.scheduler, 0.0).waiting_by_reason
    drive(engine)
