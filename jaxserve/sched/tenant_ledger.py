"""What tenants hold of the machine, and what follows from it: who may queue, who may grow, who has to give way.

A running sequence is booked with the blocks that it is likely to need: its prompt and the 0.9 quantile of its tenant's
outputs, or what it holds if that is more. A tenant's bookings never exceed its `kv_max`. `kv_guaranteed` is lent to
others while it is idle; when its owner comes back, those who hold more than their own guarantee give way.
"""

from collections import Counter
from collections.abc import Iterable

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.errors import PromptTooLong, QueueFull, RequestTooLarge, TooBusy
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants
from jaxserve.sched.output_lengths import OutputLengths

QUANTILE = 0.9
"""Of the outputs that a booking covers."""


class TenantLedger:
    def __init__(self, tenants: Tenants, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.tenants = tenants
        self.outputs = OutputLengths()
        self._config, self._blocks = config, blocks
        self._capacity = blocks.pool.capacity
        self._live: Counter[str] = Counter()
        self._rates = {t.name: _Rate(t.requests_per_s) for t in tenants if t.requests_per_s}
        self._capped = {t.name: int(t.kv_max * self._capacity) for t in tenants if t.kv_max < 1.0}
        self._short: set[str] = set()
        self._guaranteed = {t.name: int(t.kv_guaranteed * self._capacity) for t in tenants if t.kv_guaranteed}

    # --- coming and going -------------------------------------------------------------------------------------

    def check(self, sequences: list[Sequence], waiting: int, now: float) -> None:
        """`waiting`: how many of the tenant wait.

        Raises:
          QueueFull, TooBusy: the tenant is at its bound. RequestTooLarge, PromptTooLong: over its share, for ever.
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
        """Who it belongs to, and what was promised: the request's own words, its tenant's, the settings'."""
        request, tenant = sequence.request, self.tenants[sequence.request.tenant]
        sequence.tenant = tenant.name
        sequence.priority = tenant.priority if request.priority is None else request.priority
        sequence.ttft_slo_s = _first(request.ttft_slo_s, tenant.ttft_slo_s, self._config.ttft_slo_s)
        sequence.tpot_slo_s = _first(request.tpot_slo_s, tenant.tpot_slo_s, self._config.tpot_slo_s)

    def joined(self, tenant: str, count: int) -> None:
        self._live[tenant] += count

    def ended(self, sequence: Sequence) -> None:
        self._live[sequence.tenant] -= 1
        if sequence.num_outputs:
            self.outputs.note(sequence.tenant, sequence.num_outputs)

    def active(self) -> list[str]:
        """Tenants that have something waiting or running."""
        return [name for name, count in self._live.items() if count]

    # --- shares -----------------------------------------------------------------------------------------------

    def expected_len(self, sequence: Sequence) -> int:
        """Tokens that it is likely to have in the end."""
        most = sequence.max_len - sequence.num_prompt
        likely = sequence.num_prompt + self.outputs.quantile(sequence.tenant, QUANTILE, most)
        return min(max(likely, len(sequence.tokens) + 1), sequence.max_len)

    def book(self, sequence: Sequence) -> None:
        """It is about to run."""
        sequence.booked_blocks = self._blocks.blocks_for(self.expected_len(sequence))

    def booked(self, tenant: str, running: Iterable[Sequence]) -> int:
        """Blocks booked for a tenant's running sequences."""
        return sum(max(s.booked_blocks, len(s.blocks)) for s in running if s.tenant == tenant)

    def within_cap(self, sequence: Sequence, blocks: int, running: Iterable[Sequence]) -> bool:
        """Whether the sequence may hold so many blocks beside what its tenant's other ones have booked."""
        cap = self._capped.get(sequence.tenant)
        if cap is None:
            return True
        others = self.booked(sequence.tenant, (s for s in running if s is not sequence))
        return others + max(blocks, sequence.booked_blocks) <= cap

    def may_join(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether a waiting sequence, with what it is likely to need, keeps its tenant inside its cap."""
        self.book(sequence)
        return self.within_cap(sequence, 0, running)

    def may_displace(self, claimant: Sequence, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether a running sequence has to give way for a waiting one.

        A lower class gives way to a higher one, and whoever borrows to a tenant within its guarantee; who is within
        its own guarantee gives way to nobody of another tenant.
        """
        if claimant.tenant == sequence.tenant:
            return sequence.priority > claimant.priority
        if self._owns(sequence, 0, running):
            return False
        return sequence.priority > claimant.priority or self._owns(claimant, self._need(claimant), running)

    def may_yield(self, claimant: Sequence, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether a running sequence may be preempted so that another running one can grow.

        No class gives way to a lower one, and nobody inside a tenant's guarantee to another tenant. Who borrows gives
        way to whoever is inside its own guarantee, and that one does not itself give way.
        """
        if self._owns(claimant, 1, running):
            if claimant.tenant != sequence.tenant:
                return not self._owns(sequence, 0, running)
            return claimant is sequence or sequence.priority >= claimant.priority
        if claimant is sequence:
            return True
        if sequence.priority < claimant.priority:
            return False
        return claimant.tenant == sequence.tenant or not self._owns(sequence, 0, running)

    def take_stock(self, running: Iterable[Sequence]) -> None:
        """Before a step is packed: which tenants hold less than what is theirs."""
        if self._guaranteed:
            held = Counter[str]()
            for sequence in running:
                held[sequence.tenant] += len(sequence.blocks)
            self._short = {name for name, own in self._guaranteed.items() if held[name] < own}

    def standing(self, tenant: str) -> int:
        """0 for a tenant that holds less than what is its own, which goes before all others; else 1."""
        return 0 if tenant in self._short else 1

    def _need(self, sequence: Sequence) -> int:
        return self._blocks.blocks_for(len(sequence.tokens) + 1)

    def _owns(self, sequence: Sequence, more: int, running: Iterable[Sequence]) -> bool:
        """Its tenant holds, with so many blocks more, no more than it was guaranteed."""
        own = self._guaranteed.get(sequence.tenant)
        if own is None:
            return False
        return sum(len(s.blocks) for s in running if s.tenant == sequence.tenant) + more <= own


class _Rate:
    """A token bucket: a second's worth may come at once."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(per_s, 1.0)
        self._left = self._most
        self._at: float | None = None

    def take(self, now: float) -> float:
        """0, or seconds until the next request may pass."""
        if self._at is not None:
            self._left = min(self._left + (now - self._at) * self.per_s, self._most)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self.per_s
        self._left -= 1.0
        return 0.0


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
