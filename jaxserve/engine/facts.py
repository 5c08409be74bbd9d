"""What a front end knows of an engine, as data.

`EngineFacts` does not change while the engine lives: it is taken once. What changes is asked for, through
`engine.client.EngineClient`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxserve.core.decisions import Preemption
from jaxserve.core.step_record import Compilation
from jaxserve.core.tenants import DEFAULT, Tenants
from jaxserve.engine.engine import Engine
from jaxserve.engine.limits import Limits


class Device(Protocol):
    """What an executor says of itself; `runtime.runner.ModelRunner` is one."""

    @property
    def compilations_after_warmup(self) -> int: ...

    @property
    def compilations(self) -> Sequence[Compilation]:
        """The last of these, oldest first."""
        ...

    @property
    def kv_bytes(self) -> int:
        """All K/V pages together."""
        ...


class Compilations(NamedTuple):
    """Programs that were compiled after warm-up."""

    after_warmup: int = 0
    last: tuple[Compilation, ...] = ()
    """Oldest first."""


class RequestState(NamedTuple):
    """Where the time of one sequence went, or goes. Times in seconds, by part: see `core.decisions.Part`."""

    state: str
    """The part that its time goes to now; of an ended sequence its finish reason."""
    seconds: Mapping[str, float]
    first_token: Mapping[str, float] | None
    """The parts of its time to first token."""
    preemptions: tuple[Preemption, ...]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    limits: Limits
    tenants: Tenants
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    """Tokens in a KV block."""
    num_blocks: int
    """KV blocks that sequences can hold: the scratch block is not one."""
    block_bytes: int
    """K/V of one block, all layers; 0: not known."""
    most_waiting: Mapping[str, tuple[int, str]]
    """By tenant: the most sequences of it that may ever wait at once, and the setting that says so."""

    @classmethod
    def of(cls, engine: Engine, device: Device | None = None) -> "EngineFacts":
        scheduler = engine.scheduler
        pool = scheduler.blocks.pool
        return cls(
            limits=engine.limits,
            tenants=scheduler.tenants,
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            block_size=scheduler.blocks.block_size,
            num_blocks=pool.capacity,
            block_bytes=0 if device is None else device.kv_bytes // pool.num_blocks,
            most_waiting={tenant.name: scheduler.bounds.most_of(tenant.name) for tenant in scheduler.tenants},
        )

    def most_waiting_of(self, tenant: str) -> tuple[int, str]:
        """`most_waiting`; a name that no tenant has is the default tenant's."""
        return self.most_waiting.get(tenant) or self.most_waiting[DEFAULT]
