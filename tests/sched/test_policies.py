"""What each policy promises, on the virtual clock."""

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import StepPlan
from jaxserve.costs.model import FormulaCost, StepFeatures
from jaxserve.engine.engine import Engine
from jaxserve.sched.policies import POLICIES
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Served, drive

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.0, token_s=1e-4, pair_s=0.0, context_s=0.0, row_s=0.0
)
BASE = {
    "num_blocks": 2001, "block_size": 8, "enable_prefix_caching": False, "overlap": False, "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
}  # fmt: skip


class Watched:
    """An executor that keeps the plans it is given."""

    def __init__(self, inner) -> None:
        self.inner, self.plans, self.names = inner, [], {}

    def submit(self, plan: StepPlan):
        self.names |= {admitted.slot: admitted.request_id for admitted in plan.admitted}
        self.plans.append((plan, [(self.names[row.slot], row.length) for row in plan.prefills]))
        return self.inner.submit(plan)

    def reset(self) -> None:
        self.inner.reset()


def serve(arrivals: list[Arrival], **changes) -> tuple[list[Served], list]:
    clock = VirtualClock()
    engine: Engine = simulated_engine(EngineConfig.from_settings(**(BASE | changes)), COST, clock)
    watched = Watched(engine._executor)
    engine.replace_executor(watched)
    served = sorted(drive(engine, clock, arrivals), key=lambda s: s.number)
    return served, watched.plans


def test_static_waits_for_its_batch_and_keeps_its_slots() -> None:
    served, plans = serve([Arrival(0.01 * i, 10, 5 + 5 * i) for i in range(6)], policy="static", batch_size=4)
    starts = [s.first_scheduled_s for s in served]
    assert starts[0] == pytest.approx(0.03) and len(set(starts[:4])) == 1, "the fourth fills the batch"
    assert starts[4] == pytest.approx(max(s.token_s[-1] for s in served[:4])), "the last two wait for its last row"
    assert max(len(plan.decodes) for plan, _ in plans) == 4


def test_dynamic_waits_no_longer_than_its_timeout() -> None:
    options = {"policy": "dynamic", "max_batch_size": 4, "batch_timeout_s": 0.05}
    served, _ = serve([Arrival(0.0, 10, 3), Arrival(1.0, 10, 3)], **options)
    assert served[0].first_scheduled_s == pytest.approx(0.05)
    assert served[1].first_scheduled_s == pytest.approx(1.0), "no more can come: nobody to wait for"
    served, _ = serve([Arrival(0.001 * i, 10, 3) for i in range(4)] + [Arrival(9.0, 1, 1)], **options)
    assert served[0].first_scheduled_s == pytest.approx(0.003), "a full batch starts at once"


def test_continuous_runs_whole_prompts_alone() -> None:
    listed = [Arrival(0.002 * i, 100, 30) for i in range(8)]
    _, plans = serve(listed, policy="continuous")
    assert all(not (plan.decodes and plan.prefills) for plan, _ in plans)
    assert all(length == 100 for _, chunks in plans for _, length in chunks)
    _, plans = serve([Arrival(0.0, 700, 2)], policy="continuous")
    assert [chunks[0][1] for _, chunks in plans if chunks] == [256, 256, 188], "no step holds it: it is split"


def test_chunked_never_stops_the_decodes() -> None:
    served, plans = serve([Arrival(0.0, 10, 60), Arrival(0.02, 2000, 2)], policy="chunked", chunk_size=64)
    gaps = [b - a for a, b in zip(served[0].token_s, served[0].token_s[1:], strict=False)]
    assert max(gaps) <= 0.002 + 1e-4 * 65 + 1e-9
    assert all(length <= 64 for _, chunks in plans for _, length in chunks)


@pytest.mark.parametrize("tpot", [0.005, 0.01, 0.02])
def test_adaptive_keeps_the_time_between_tokens(tpot: float) -> None:
    listed = [Arrival(0.05 * i, 300, 60) for i in range(30)]
    options = {"policy": "adaptive", "prefill_buckets": (8, 16, 32, 64, 128, 256), "tpot_slo_s": tpot}
    served, plans = serve(listed, **options)
    assert all(s.tpot_s <= tpot for s in served)
    mixed = [chunks for plan, chunks in plans if plan.decodes and chunks]
    assert mixed, "and prompts progress beside them"


def test_adaptive_takes_what_the_objective_leaves() -> None:
    """The tighter the objective, the smaller the chunks; without one, the whole budget."""
    listed = [Arrival(0.05 * i, 300, 60) for i in range(30)]
    sizes = {}
    for tpot in (0.005, 0.02, None):
        _, plans = serve(listed, policy="adaptive", prefill_buckets=(8, 16, 32, 64, 128, 256), tpot_slo_s=tpot)
        sizes[tpot] = max(sum(n for _, n in chunks) for plan, chunks in plans if plan.decodes)
    assert sizes[0.005] < sizes[0.02] <= sizes[None]


def test_an_objective_that_no_step_can_meet_is_no_reason_to_stop() -> None:
    served, _ = serve([Arrival(0.01 * i, 300, 20) for i in range(10)], policy="adaptive", tpot_slo_s=1e-4)
    assert all(len(s.token_s) == 20 for s in served)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_long_prompt_leaves_room_for_the_short(policy: str) -> None:
    listed = [Arrival(0.0, 2000, 2), Arrival(0.001, 10, 2), Arrival(0.001, 10, 2)]
    options = {"policy": policy, "fill_buckets": False, "batch_size": 1, "max_batch_size": 3, "batch_timeout_s": 0.002}
    _, plans = serve(listed, long_prefill_token_threshold=100, **options)
    assert all(length <= 100 for _, chunks in plans for _, length in chunks)
    if policy != "static":  # a batch of one has nobody to leave room for
        both = [chunks for _, chunks in plans if {"0", "1", "2"} <= {name for name, _ in chunks}]
        assert both, "the short ones are in a step with the long one"


def test_long_prompts_progress_equally() -> None:
    _, plans = serve([Arrival(0.0, 2000, 1) for _ in range(2)], long_prefill_token_threshold=200)
    shared = [[n for _, n in chunks] for _, chunks in plans if len(chunks) == 2]
    assert len(shared) > 10 and shared.count([128, 128]) > 10


def test_at_most_so_many_long_prompts_at_once() -> None:
    listed = [Arrival(0.0, 2000, 1) for _ in range(3)]
    _, plans = serve(listed, long_prefill_token_threshold=64, max_long_partial_prefills=1, fill_buckets=False)
    assert all(length > 0 for _, chunks in plans for _, length in chunks), "the last one too begins with a chunk"
    longs = [sum(n == 64 for _, n in chunks) for _, chunks in plans]
    assert max(longs) == 1


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="chunked"):
        serve([], policy="magic")
    with pytest.raises(ConfigError, match="shortest"):
        serve([], ordering="magic")


def test_steps_are_predicted_as_they_are_priced() -> None:
    """On the virtual clock the live cost model is never wrong."""
    clock = VirtualClock()
    engine = simulated_engine(EngineConfig.from_settings(**BASE), COST, clock)
    list(drive(engine, clock, [Arrival(0.01 * i, 50, 20) for i in range(40)]))
    assert engine.scheduler.costs.median_error == pytest.approx(0.0, abs=1e-9)
    assert engine.scheduler.costs.margin == pytest.approx(1.0)
    plan = StepPlan(1, (), (), engine.scheduler._buckets.fit(0, 8))
    assert engine.scheduler.costs.seconds(StepFeatures.of(plan)) == pytest.approx(0.002)
