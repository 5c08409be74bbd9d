"""An engine whose device is a cost model."""

from typing import NamedTuple

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.buckets import BucketTable
from jaxserve.core.clock import Clock, VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.sections import CacheConfig
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel, FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.executor import Executor
from jaxserve.engine.limits import Limits
from jaxserve.sched.scheduler import Scheduler
from jaxserve.sched.victims import CheapestFirst
from jaxserve.sim.executor import NO_MOVES, SimExecutor

VOCAB_SIZE = 1 << 31
"""Any token will do: nothing looks at them but the prefix cache. Any length will do, too, that the pool can hold."""


class Simulated(NamedTuple):
    """An engine, and the device that it drives."""

    engine: Engine
    executor: SimExecutor


def simulated_engine(
    config: EngineConfig, cost: CostModel, clock: VirtualClock, tenants: Tenants | None = None
) -> Engine:
    """`simulated` without the executor."""
    return simulated(config, cost, clock, tenants).engine


def simulated(config: EngineConfig, cost: CostModel, clock: VirtualClock, tenants: Tenants | None = None) -> Simulated:
    """Everything as it serves, but the executor. `num_blocks` says how large the KV pool is, or `kv_cache_bytes`.

    Without `tenants`: those of the file that the settings name.

    Raises:
      ConfigError: neither is set, or the settings cannot work.
    """
    tenants = Tenants.of(config.scheduler) if tenants is None else tenants
    num_blocks = _num_blocks(config.cache, cost)
    tiers, moves = _tiers(config.cache, cost)
    executor = SimExecutor(cost, clock, moves)
    max_len = config.model.max_model_len or VOCAB_SIZE
    costs = StepCosts(cost, learns=False)  # it is the device's own: what it says is true, and replicas share it
    return Simulated(
        host_side(config, num_blocks + 1, max_len, executor, costs, clock, tenants, tiers, moves), executor
    )


def host_side(
    config: EngineConfig,
    num_blocks: int,
    max_len: int,
    executor: Executor,
    costs: StepCosts,
    clock: Clock,
    tenants: Tenants | None = None,
    tiers: TierLedger | None = None,
    moves: MoveCosts = NO_MOVES,
) -> Engine:
    """The engine that serves, around any executor. `num_blocks`: the scratch block included."""
    pinned = config.runtime.deterministic
    table = (BucketTable.pinned if pinned else BucketTable.from_config)(config.buckets, config.scheduler)
    blocks = BlockManager(
        config.cache,
        num_blocks,
        tiers=tiers,
        share_multiple=table.max_prefill_tokens if pinned else 1,
        share_outputs=not pinned,
    )
    victims = CheapestFirst(blocks, costs, moves, table)
    scheduler = Scheduler(
        config.scheduler,
        table,
        blocks,
        table.max_prefill_tokens if pinned else None,
        costs=costs,
        tenants=tenants,
        victims=victims,
    )
    limits = Limits(VOCAB_SIZE, max_len, blocks.max_tokens, config.cache.pool_setting)
    return Engine(scheduler, executor, limits, clock, overlap=config.runtime.overlap, seed=config.model.seed)


def _num_blocks(config: CacheConfig, cost: CostModel) -> int:
    if config.num_blocks is not None:
        return config.num_blocks
    token = cost.kv_bytes_per_token if isinstance(cost, FormulaCost) else 0
    if config.kv_cache_bytes is None or not token:
        raise ConfigError(
            "num_blocks = None cannot work in a simulation: give the size of the KV pool in blocks, which `jaxserve "
            "plan` and `jaxserve calibrate` tell, or kv_cache_bytes with a cost model that has kv_bytes_per_token"
        )
    return max(config.kv_cache_bytes // (token * config.block_size), 1)


def _tiers(config: CacheConfig, cost: CostModel) -> tuple[TierLedger, MoveCosts]:
    """Sizes of the offload tiers in blocks, and what moving a block takes."""
    moved = isinstance(cost, FormulaCost) and cost.kv_bytes_per_token > 0
    if not moved and (config.offload_host_bytes or config.offload_disk_bytes):
        raise ConfigError(
            "offload cannot be simulated with this cost model: it needs kv_bytes_per_token and move times"
        )
    if not isinstance(cost, FormulaCost) or not moved:
        return TierLedger(), NO_MOVES
    size, tokens = cost.kv_bytes_per_token * config.block_size, config.block_size
    sizes = (config.offload_host_bytes, config.offload_disk_bytes, config.offload_staging_bytes)
    host, disk = tokens * cost.move_s_per_token, tokens * cost.disk_s_per_token
    moves = MoveCosts(to_host_s=host, from_host_s=host, to_disk_s=disk, from_disk_s=disk)
    return TierLedger(*(given // size for given in sizes)), moves
