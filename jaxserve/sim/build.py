"""An engine whose device is a cost model."""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenants
from jaxserve.engine.admission import Limits
from jaxserve.engine.engine import Engine
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.cost_model import CostModel
from jaxserve.sched.scheduler import Scheduler
from jaxserve.sched.step_costs import StepCosts
from jaxserve.sim.executor import SimExecutor

VOCAB_SIZE = 1 << 31
"""Any token will do: nothing looks at them but the prefix cache. Any length will do, too, that the pool can hold."""


def simulated_engine(
    config: EngineConfig, cost: CostModel, clock: VirtualClock, tenants: Tenants | None = None
) -> Engine:
    """Everything as it serves, but the executor. `num_blocks` says how large the KV pool is.

    Raises:
      ConfigError: `num_blocks` is not set, or the settings cannot work.
    """
    if config.cache.num_blocks is None:
        raise ConfigError("num_blocks = None cannot work in a simulation: give the size of the KV pool in blocks")
    table = BucketTable.from_config(config.buckets, config.scheduler)
    blocks = BlockManager(config.cache, config.cache.num_blocks)
    scheduler = Scheduler(config.scheduler, table, blocks, costs=StepCosts(cost), tenants=tenants)
    return Engine(
        scheduler,
        SimExecutor(cost, clock),
        Limits(VOCAB_SIZE, config.model.max_model_len or VOCAB_SIZE, blocks.max_tokens),
        clock,
        overlap=config.runtime.overlap,
        seed=config.model.seed,
    )
