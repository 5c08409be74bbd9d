"""An engine whose device is a cost model."""

from dataclasses import replace
from typing import NamedTuple

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.move_costs import NO_MOVES, MoveCosts
from jaxserve.core.sections import CacheConfig
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel, FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.host_side import Sizes, host_side
from jaxserve.sim.executor import SimExecutor

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
    sizes, moves = _sizes(config, cost)
    executor = SimExecutor(cost, clock, moves)
    costs = StepCosts(cost, learns=False)  # it is the device's own: what it says is true, and replicas share it
    engine = host_side(config, sizes, executor, clock, costs=costs, moves=moves, tenants=tenants)
    return Simulated(engine, executor)


def _sizes(config: EngineConfig, cost: CostModel) -> tuple[Sizes, MoveCosts]:
    """What the simulated device has room for, and what moving a block between its tiers takes."""
    cache = config.cache
    sizes = Sizes(
        vocab_size=VOCAB_SIZE, max_len=config.model.max_model_len or VOCAB_SIZE, num_blocks=_num_blocks(cache, cost) + 1
    )  # fmt: skip
    if not isinstance(cost, FormulaCost) or not cost.kv_bytes_per_token:
        if cache.offload_host_bytes or cache.offload_disk_bytes:
            raise ConfigError(
                "offload cannot be simulated with this cost model: it needs kv_bytes_per_token and move times"
            )
        return sizes, NO_MOVES
    block = cost.kv_bytes_per_token * cache.block_size
    host, disk = cache.block_size * cost.move_s_per_token, cache.block_size * cost.disk_s_per_token
    tiers = replace(
        sizes,
        host_blocks=cache.offload_host_bytes // block,
        disk_blocks=cache.offload_disk_bytes // block,
        staging_blocks=cache.offload_staging_bytes // block,
    )
    return tiers, MoveCosts(to_host_s=host, from_host_s=host, to_disk_s=disk, from_disk_s=disk)


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
