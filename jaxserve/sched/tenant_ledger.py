"""What each tenant may queue, and what it may hold of the KV blocks at most. What is its own: `sched.shares`.

A running sequence is booked with the blocks that it is likely to need: its prompt and the 0.9 quantile of its tenant's
outputs, or what it holds if that is more. A tenant's bookings never exceed its `kv_max`.
"""

from collections import Counter
from collections.abc import Iterable

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import PromptTooLong, RequestTooLarge
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants
from jaxserve.sched.output_lengths import OutputLengths
from jaxserve.sched.tenant_limits import TenantLimits

BOOKED_QUANTILE = 0.9
"""A booking covers the output length of this share of the tenant's requests."""


class TenantLedger:
    """Writes a sequence's `tenant`, what it takes of the tenant's settings, its `max_len` and its booking."""

    def __init__(self, tenants: Tenants, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.tenants = tenants
        self.outputs = OutputLengths()
        self._config, self._blocks = config, blocks
        self._capacity = blocks.pool.capacity
        self._live: Counter[str] = Counter()
        self._limits = {tenant.name: TenantLimits(tenant, self.outputs) for tenant in tenants}
        self._capped = {t.name: int(t.kv_max * self._capacity) for t in tenants if t.kv_max < 1.0}

    # --- coming and going -------------------------------------------------------------------------------------

    def check(self, sequences: list[Sequence], waiting: int, now: float) -> None:
        """Whether a request may be queued. `waiting`: sequences of its tenant that wait.

        Raises:
          QueueFull, TooBusy: the tenant is at a limit. RequestTooLarge, PromptTooLong: a limit of it can never hold it.
        """
        name = sequences[0].tenant
        self._fit_share(sequences)
        self._limits[name].check(sequences, waiting, self._live[name], now)

    def _fit_share(self, sequences: list[Sequence]) -> None:
        name = sequences[0].tenant
        if name not in self._capped:
            return
        most, limit = self._capped[name] * self._blocks.block_size, f"kv_max of tenant {name!r}"
        for sequence in sequences:
            if sequence.num_prompt + 1 > most:
                raise PromptTooLong(sequence.num_prompt, most - 1, limit)
            if sequence.params.max_tokens is None:
                sequence.max_len = min(sequence.max_len, most)
            elif sequence.max_len > most:
                raise RequestTooLarge(sequence.max_len, most, limit)

    def resolve(self, sequence: Sequence) -> None:
        """Set its tenant, priority and objectives: the request's own, else the tenant's, else the engine's.

        A request that asks for more than its tenant's class or objectives has those (see `Tenant.may_raise_priority`).
        One that asks for less is not judged by what its tenant was promised.
        """
        request, tenant = sequence.request, self.tenants[sequence.request.tenant]
        ttft_s = _first(tenant.ttft_slo_s, self._config.ttft_slo_s)
        tpot_s = _first(tenant.tpot_slo_s, self._config.tpot_slo_s)
        sequence.tenant = tenant.name
        sequence.prefix_scope = self.tenants.prefix_scope(request.owner or request.tenant)
        sequence.priority = tenant.allowed_priority(request.priority)
        sequence.ttft_slo_s = tenant.allowed_objective(request.ttft_slo_s, ttft_s)
        sequence.tpot_slo_s = tenant.allowed_objective(request.tpot_slo_s, tpot_s)
        lower = sequence.priority > tenant.priority
        sequence.promised_ttft_s = None if lower or _looser(request.ttft_slo_s, ttft_s) else ttft_s
        sequence.promised_tpot_s = None if lower or _looser(request.tpot_slo_s, tpot_s) else tpot_s

    def joined(self, sequences: list[Sequence], now: float) -> None:
        """A request that passed `check` is queued."""
        name = sequences[0].tenant
        self._live[name] += len(sequences)
        self._limits[name].book(sequences, now)

    def ended(self, sequence: Sequence) -> None:
        self._live[sequence.tenant] -= 1
        self._limits[sequence.tenant].settle(sequence)
        if sequence.num_outputs:
            self.outputs.note(sequence.tenant, sequence.num_outputs)

    @property
    def active(self) -> frozenset[str]:
        """Tenants with waiting or running sequences."""
        return frozenset([name for name, count in self._live.items() if count])

    # --- shares -----------------------------------------------------------------------------------------------

    def expected_len(self, sequence: Sequence) -> int:
        """Prompt and output tokens that it is likely to have in the end."""
        most = sequence.max_len - sequence.num_prompt
        likely = sequence.num_prompt + self.outputs.quantile(sequence.tenant, BOOKED_QUANTILE, most)
        return min(max(likely, len(sequence.tokens) + 1), sequence.max_len)

    def book(self, sequence: Sequence) -> None:
        """Book the blocks that it is likely to need."""
        sequence.booked_blocks = self._blocks.blocks_for(self.expected_len(sequence))

    def booked(self, tenant: str, running: Iterable[Sequence]) -> int:
        """Blocks booked for a tenant's running sequences."""
        return sum(max(s.booked_blocks, len(s.blocks)) for s in running if s.tenant == tenant)

    def within_cap(self, sequence: Sequence, blocks: int, running: Iterable[Sequence]) -> bool:
        """Whether the sequence may hold `blocks` blocks beside the bookings of its tenant's other running sequences."""
        cap = self._capped.get(sequence.tenant)
        if cap is None:
            return True
        others = self.booked(sequence.tenant, (s for s in running if s is not sequence))
        return others + max(blocks, sequence.booked_blocks) <= cap

    def may_join(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether its tenant stays within its cap if the waiting sequence is admitted, and book its blocks."""
        self.book(sequence)
        return self.within_cap(sequence, 0, running)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _looser(own: float | None, promised: float | None) -> bool:
    return own is not None and promised is not None and own > promised
