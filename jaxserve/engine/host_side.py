"""The one wiring of the host side: block manager, costs, victims, scheduler, limits, engine.

The server (`assembly`), the simulator (`sim.build`), the replay of a record and the tests build their engines here, so
that what is simulated is what serves. They differ in the executor, the clock and the costs.
"""

from dataclasses import dataclass

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.buckets import BucketTable
from jaxserve.core.clock import Clock
from jaxserve.core.config import EngineConfig
from jaxserve.core.move_costs import NO_MOVES, MoveCosts
from jaxserve.core.tenants import Tenants
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.executor import Executor
from jaxserve.engine.limits import Limits
from jaxserve.sched.scheduler import Scheduler
from jaxserve.sched.victims import CheapestFirst, VictimPolicy
from jaxserve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the executor has room for."""

    vocab_size: int
    max_len: int
    """Tokens of the longest sequence."""
    num_blocks: int
    """KV blocks on the device, the scratch block included."""
    host_blocks: int = 0
    disk_blocks: int = 0
    staging_blocks: int = 0
    """Sizes of the offload tiers; 0: none."""


def host_side(
    config: EngineConfig,
    sizes: Sizes,
    executor: Executor,
    clock: Clock,
    *,
    costs: StepCosts | None = None,
    moves: MoveCosts = NO_MOVES,
    tenants: Tenants | None = None,
    victims: VictimPolicy | None = None,
    tokenizer: Tokenizer | None = None,
) -> Engine:
    """An engine around any executor.

    Args:
      costs: the step-time model; default: one that knows nothing and learns.
      moves: what moving a block between the tiers takes.
      tenants: default: none but the default tenant.
      victims: default: the sequence whose preemption costs least.
      tokenizer: default: none; outputs then have no text, and stop strings are refused.

    Raises:
      ConfigError: the settings cannot work together.
    """
    buckets = BucketTable.from_config(config.buckets, config.scheduler, deterministic=config.runtime.deterministic)
    tiers = TierLedger(sizes.host_blocks, sizes.disk_blocks, sizes.staging_blocks)
    blocks = BlockManager(
        config.cache, sizes.num_blocks, tiers=tiers, aligned_chunk=buckets.aligned_chunk, tenants=tenants
    )
    costs = costs or StepCosts()
    victims = victims or CheapestFirst(blocks, costs, moves, buckets)
    scheduler = Scheduler(config.scheduler, buckets, blocks, costs=costs, tenants=tenants, victims=victims)
    limits = Limits(sizes.vocab_size, sizes.max_len, blocks.max_tokens, config.cache.pool_setting)
    return Engine(
        scheduler, executor, limits, clock, tokenizer, overlap=config.runtime.overlap, seed=config.model.seed
    )  # fmt: skip
