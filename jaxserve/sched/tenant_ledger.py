"""What each tenant may queue, and what it may hold of the KV blocks at most. What is its own: `sched.shares`.

A running sequence is booked with the blocks that it is likely to need: its prompt and the 0.9 quantile of its tenant's
outputs, or what it holds if that is more. A tenant's bookings never exceed its `kv_max`.
"""

from collections import Counter
from collections.abc import Iterable

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import PromptTooLong, QueueFull, RequestTooLarge, TooBusy
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants
from jaxserve.sched.output_lengths import OutputLengths

BOOKED_QUANTILE = 0.9
"""A booking covers the output length of this share of the tenant's requests."""


class TenantLedger:
    """Writes a sequence's `tenant`, its objectives, its priority, its `max_len` and its booking."""

    def __init__(self, tenants: Tenants, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.tenants = tenants
        self.outputs = OutputLengths()
        self._config, self._blocks = config, blocks
        self._capacity = blocks.pool.capacity
        self._live: Counter[str] = Counter()
        self._rates = {t.name: _Rate(t.requests_per_s) for t in tenants if t.requests_per_s}
        self._capped = {t.name: int(t.kv_max * self._capacity) for t in tenants if t.kv_max < 1.0}

    # --- coming and going -------------------------------------------------------------------------------------

    def check(self, sequences: list[Sequence], waiting: int, now: float) -> None:
        """Whether a request may be queued. `waiting`: sequences of its tenant that wait.

        Raises:
          QueueFull, TooBusy: the tenant is at its bound. RequestTooLarge, PromptTooLong: `kv_max` can never hold it.
        """
        name = sequences[0].tenant
        tenant = self.tenants[name]
        if tenant.max_waiting is not None and waiting + len(sequences) > tenant.max_waiting:
            raise QueueFull(waiting, tenant.max_waiting, f"max_waiting of tenant {name!r}")
        self._fit_share(sequences)
        rate = self._rates.get(name)
        if rate is not None and (wait_s := rate.take(now)):
            raise TooBusy(
                f"tenant {name!r} is over its {rate.per_s:g} requests a second: try again in {wait_s:.2g} s",
                "rate_limit",
                wait_s,
            )

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
        """Set its tenant, priority and objectives: the request's own, else the tenant's, else the engine's."""
        request, tenant = sequence.request, self.tenants[sequence.request.tenant]
        sequence.tenant = tenant.name
        sequence.priority = tenant.priority if request.priority is None else request.priority
        sequence.ttft_slo_s = _first(request.ttft_slo_s, tenant.ttft_slo_s, self._config.ttft_slo_s)
        sequence.tpot_slo_s = _first(request.tpot_slo_s, tenant.tpot_slo_s, self._config.tpot_slo_s)
        sequence.promised_ttft_s = _first(tenant.ttft_slo_s, self._config.ttft_slo_s)

    def joined(self, tenant: str, count: int) -> None:
        self._live[tenant] += count

    def ended(self, sequence: Sequence) -> None:
        self._live[sequence.tenant] -= 1
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


class _Rate:
    """A token bucket: as many requests as `per_s` may come at once."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(per_s, 1.0)
        self._left = self._most
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Count a request that is within the rate and return 0, or return the seconds until the next one would be."""
        if self._at is not None:
            self._left = min(self._left + (now - self._at) * self.per_s, self._most)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self.per_s
        self._left -= 1.0
        return 0.0


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
