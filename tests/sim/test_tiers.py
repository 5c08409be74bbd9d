"""Two classes on a pool too small for both, on the virtual clock: the invariants of scenario S3, for every way."""

import random
from typing import Any

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import StepPlan, Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Request
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.sim.build import simulated_engine

KV_BYTES = 131072
GIB = 1 << 30
BLOCKS = 256
COST = FormulaCost(
    source="nominal H200, 8B", overhead_s=1.5e-3, weights_s=4.4e-3, token_s=2.95e-5, pair_s=1.75e-9,
    context_s=3.9e-8, row_s=1e-5, kv_bytes_per_token=KV_BYTES, move_s_per_token=2.6e-6, disk_s_per_token=4e-5,
)  # fmt: skip
WAYS: dict[str, dict[str, int]] = {
    "recompute": {},
    "host": {"offload_host_bytes": 4 * GIB},
    "disk": {"offload_disk_bytes": 4 * GIB},
    "a host too small, then the disk": {"offload_host_bytes": GIB // 16, "offload_disk_bytes": 4 * GIB},
}


class Watched:
    """An executor that keeps the plans and checks every one."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._inner = engine, engine._executor
        self.preempted: list[tuple[int, int]] = []
        self.moves: dict[tuple[Tier, Tier], int] = {}
        engine.replace_executor(self)

    def submit(self, plan: StepPlan) -> Any:
        pool = self._engine.scheduler.blocks.pool
        assert pool.capacity - pool.num_free <= BLOCKS
        step = self._engine.scheduler.in_flight[-1]
        for victim in step.preempted:
            assert victim not in step.sequences and not victim.blocks
            waiting = [s.priority for s in self._engine.scheduler.live() if s.slot >= 0]
            assert victim.priority == 1 or all(p == 0 for p in waiting), "a chat was preempted while a batch job ran"
            self.preempted.append((victim.priority, victim.preemptions))
        for move in plan.moves:
            key = move.source, move.target
            self.moves[key] = self.moves.get(key, 0) + 1
        return self._inner.submit(plan)

    def reset(self) -> None:
        self._inner.reset()


def serve(way: str, seed: int) -> tuple[Engine, Watched, dict[str, float], dict[str, int]]:
    """40 documents at the start, a chat every 80 ms; (engine, watched, chats' times to the first token, tokens)."""
    clock, rng = VirtualClock(), random.Random(seed)
    settings = dict(
        num_blocks=BLOCKS, block_size=16, max_num_seqs=64, max_num_batched_tokens=512, enable_prefix_caching=False,
        ordering="priority", offload_staging_bytes=64 << 20,
    )  # fmt: skip
    engine = simulated_engine(EngineConfig.from_settings(**settings, **WAYS[way]), COST, clock)
    watched = Watched(engine)

    def request(name: str, prompt: int, output: int, priority: int) -> Request:
        params = SamplingParams(max_tokens=output, ignore_eos=True)
        return Request(id=name, prompt=(0,) * prompt, params=params, arrival_s=clock.now(), priority=priority)

    wanted: dict[str, int] = {}
    for i in range(40):
        wanted[f"batch-{i}"] = rng.randint(60, 150)
        engine.add(request(f"batch-{i}", rng.randint(200, 900), wanted[f"batch-{i}"], 1))
    arrived: dict[str, float] = {}
    first: dict[str, float] = {}
    got: dict[str, int] = {}
    while engine.has_work:
        due = len(arrived) * 0.08
        if len(arrived) < 40 and clock.now() >= due:
            name = f"chat-{len(arrived)}"
            wanted[name], arrived[name] = rng.randint(10, 60), clock.now()
            engine.add(request(name, rng.randint(50, 600), wanted[name], 0))
        for output in engine.step():
            got[output.request_id] = got.get(output.request_id, 0) + len(output.tokens)
            first.setdefault(output.request_id, clock.now())
    assert got == wanted, "a request was lost, cut short or answered twice"
    return engine, watched, {name: first[name] - arrived[name] for name in arrived}, got


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_the_invariants_of_two_classes(way: str, seed: int) -> None:
    engine, watched, ttft, _ = serve(way, seed)
    tiers = engine.scheduler.blocks.tiers
    assert engine.scheduler.blocks.pool.num_free == BLOCKS
    assert tiers.used(Tier.HOST) == tiers.used(Tier.DISK) == 0 and not tiers.busy
    assert watched.preempted, "the pool was to be too small"
    assert max(times for _, times in watched.preempted) <= SchedulerConfig().max_preemptions
    assert (tiers.counts.saved_to_host > 0) == ("host" in way)
    assert (tiers.counts.saved_to_disk > 0) == ("disk" in way)
    assert len(ttft) == 40


@pytest.mark.parametrize("way", ["host", "disk"])
def test_moves_cost_less_than_computing_again(way: str) -> None:
    ended = {name: sum(serve(name, seed)[0]._clock.now() for seed in (21, 22, 23)) for name in (way, "recompute")}
    assert ended[way] < ended["recompute"]
