"""How much may wait. A request over a bound is refused at once, with the name of the setting."""

from jaxserve.core.errors import InvalidParameter, QueueFull
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants
from jaxserve.sched.waiting import WaitingQueue


class QueueBounds:
    """Bounds on the number of all waiting sequences and on their tokens. A tenant's own: `TenantLedger.check`."""

    def __init__(self, config: SchedulerConfig, waiting: WaitingQueue, tenants: Tenants) -> None:
        self._most, self._most_tokens = config.max_waiting, config.max_waiting_tokens
        self._waiting, self._tenants = waiting, tenants

    def most_of(self, tenant: str) -> tuple[int, str]:
        """The most sequences of a tenant that may ever wait at once, and the setting that limits them."""
        known = self._tenants[tenant]
        if known.max_waiting is not None and known.max_waiting < self._most:
            return known.max_waiting, f"max_waiting of tenant {known.name!r}"
        return self._most, "max_waiting"

    def have_room(self, count: int, tokens: int) -> bool:
        """Whether `count` more sequences, of `tokens` tokens together, may wait."""
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
        """An empty queue takes any number of tokens: a request over the bound could otherwise never be served."""
        waiting, most = self._waiting, self._most_tokens
        return most is None or not waiting or waiting.tokens + tokens <= most
