"""Small engines on the fake device, and what every run of one must leave behind."""

from collections.abc import Callable
from typing import Any

import pytest

from jaxserve.core.buckets import BucketTable
from jaxserve.core.clock import Clock, VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, RuntimeConfig, SchedulerConfig
from jaxserve.core.sequence import Request
from jaxserve.core.tenants import Tenants
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.host_side import Sizes, host_side
from jaxserve.sched.victims import VictimPolicy
from tests.engine.fake_executor import VOCAB, FakeExecutor

BLOCK = 8


def build_engine(
    *,
    blocks: int = 64,
    overlap: bool = True,
    deterministic: bool = False,
    prefix: bool = True,
    max_model_len: int = 256,
    watermark: float = 0.01,
    buckets: dict[str, Any] | None = None,
    tiers: tuple[int, int, int] = (0, 0, 0),
    victims: VictimPolicy | None = None,
    clock: Clock | None = None,
    tenants: Tenants | None = None,
    costs: StepCosts | None = None,
    **limits: Any,
) -> Engine:
    """An engine with the fake executor as `engine.executor`-in-waiting: see `executor_of`."""
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 32} | limits
    config = EngineConfig(
        cache=CacheConfig(block_size=BLOCK, enable_prefix_caching=prefix, watermark=watermark),
        scheduler=SchedulerConfig(**settings),
        buckets=BucketConfig(**(buckets or {"prefill_buckets": (8, 16, settings["max_num_batched_tokens"])})),
        runtime=RuntimeConfig(overlap=overlap, deterministic=deterministic),
    )
    table = BucketTable.from_config(config.buckets, config.scheduler, deterministic=deterministic)
    executor = FakeExecutor(BLOCK, blocks + 1, config.scheduler.max_num_seqs, table)
    host, disk, staging = tiers
    sizes = Sizes(
        vocab_size=VOCAB, max_len=max_model_len, num_blocks=blocks + 1, host_blocks=host, disk_blocks=disk,
        staging_blocks=staging,
    )  # fmt: skip
    engine = host_side(
        config, sizes, executor, clock or VirtualClock(), costs=costs, tenants=tenants, victims=victims
    )  # fmt: skip
    engine.fake = executor  # type: ignore[attr-defined]
    return engine


OF_THE_REQUEST = ("tenant", "priority", "ttft_slo_s", "tpot_slo_s", "arrival_s", "owner")


def request(name: str, prompt: list[int], *, eos: tuple[int, ...] = (), salt: str = "", **params: Any) -> Request:
    own = {key: params.pop(key) for key in OF_THE_REQUEST if key in params}
    options = SamplingParams(**({"max_tokens": 8, "temperature": 0.0, "seed": 0} | params))
    return Request(id=name, prompt=tuple(prompt), params=options, cache_salt=salt, eos_token_ids=eos, **own)


def drive(engine: Engine, limit: int = 5000) -> dict[tuple[str, int], list[int]]:
    """Step until nothing is left; tokens by (request, completion). Checks that the pool is whole afterwards."""
    found: dict[tuple[str, int], list[int]] = {}
    for _ in range(limit):
        if not engine.has_work:
            break
        for output in engine.step():
            found.setdefault((output.request_id, output.index), []).extend(output.tokens)
    assert not engine.has_work, "the engine does not come to an end"
    assert_whole(engine)
    return found


def assert_whole(engine: Engine) -> None:
    pool = engine.scheduler.blocks.pool
    assert pool.num_free == pool.capacity
    assert all(pool.is_free(block) for block in range(1, pool.num_blocks))
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0
    assert engine.scheduler._roster.waiting.tokens == 0
    tiers = engine.scheduler.blocks.tiers
    assert tiers.used(Tier.DISK) == 0 and tiers.used(Tier.HOST) == tiers.num_prefixes and not tiers.busy
    fake = engine.fake.tiers  # type: ignore[attr-defined]
    assert not fake.disk and not fake.staged


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    return build_engine
