"""How much may wait: what does not fit is refused at once, with the setting that says so, rather than kept for long."""

from jaxserve.core.errors import InvalidParameter, QueueFull
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants
from jaxserve.sched.waiting import WaitingQueue


class QueueBounds:
    """Bounds on sequences and on their tokens, of all that wait. A tenant's own: `TenantLedger.check`."""

    def __init__(self, config: SchedulerConfig, waiting: WaitingQueue, tenants: Tenants) -> None:
        self._most, self._most_tokens = config.max_waiting, config.max_waiting_tokens
        self._waiting, self._tenants = waiting, tenants

    def most_of(self, tenant: str) -> tuple[int, str]:
        """The most sequences of a tenant that may ever wait at once, and the setting that says so."""
        known = self._tenants[tenant]
        if known.max_waiting is not None and known.max_waiting < self._most:
            return known.max_waiting, f"max_waiting of tenant {known.name!r}"
        return self._most, "max_waiting"

    def have_room(self, count: int, tokens: int) -> bool:
        """Whether so many more sequences, of so many tokens together, may wait."""
        return len(self._waiting) + count <= self._most and self._fit(tokens)

    def check(self, sequences: list[Sequence]) -> None:
        """Raises QueueFull; InvalidParameter for more sequences of a request than may ever wait."""
        most, limit = self.most_of(sequences[0].request.tenant)
        if len(sequences) > most:
            raise InvalidParameter("n", len(sequences), f"at most {limit} ({most})")
        if len(self._waiting) + len(sequences) > self._most:
            raise QueueFull(len(self._waiting), self._most)
        coming = sum(len(sequence.tokens) for sequence in sequences)
        if self._most_tokens is not None and not self._fit(coming):
            raise QueueFull(self._waiting.tokens, self._most_tokens, "max_waiting_tokens", what="tokens")

    def _fit(self, tokens: int) -> bool:
        """Into an empty queue any number of tokens may come, or they never could."""
        waiting, most = self._waiting, self._most_tokens
        return most is None or not waiting or waiting.tokens + tokens <= most
