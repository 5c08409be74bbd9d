"""How much may wait. A request over a bound is refused at once, with the name of the setting.

`max_waiting` and `max_waiting_tokens` bound what waits of all tenants together. Of each, a part in proportion to its
weight is a tenant's own: a queue that others have filled does not keep it out of that part. So less than twice the
bound ever waits.
"""

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
        self._weights = sum(tenant.weight for tenant in tenants)

    def most_of(self, tenant: str) -> tuple[int, str]:
        """The most sequences of a tenant that may ever wait at once, and the setting that limits them."""
        known = self._tenants[tenant]
        limits = [(self._most, "max_waiting")]
        for name in ("max_waiting", "max_concurrent"):
            if (own := getattr(known, name)) is not None:
                limits.append((own, f"{name} of tenant {known.name!r}"))
        return min(limits, key=lambda limit: limit[0])

    def have_room(self, tenant: str, count: int, tokens: int) -> bool:
        """Whether `count` more sequences of a tenant, of `tokens` tokens together, may wait."""
        return self._count_fits(tenant, count) and self._tokens_fit(tenant, tokens)

    def check(self, sequences: list[Sequence]) -> None:
        """Raises QueueFull; InvalidParameter for more sequences of a request than may ever wait."""
        tenant = sequences[0].request.tenant
        most, limit = self.most_of(tenant)
        if len(sequences) > most:
            raise InvalidParameter("n", len(sequences), f"at most {limit} ({most})")
        if not self._count_fits(tenant, len(sequences)):
            raise QueueFull(len(self._waiting), self._most)
        if not self._tokens_fit(tenant, sum(len(sequence.tokens) for sequence in sequences)):
            assert self._most_tokens is not None
            raise QueueFull(self._waiting.tokens, self._most_tokens, "max_waiting_tokens", what="tokens")

    def _count_fits(self, tenant: str, count: int) -> bool:
        waiting, known = self._waiting, self._tenants[tenant]
        own = self._most * known.weight / self._weights
        return len(waiting) + count <= self._most or waiting.count(known.name) + count <= own

    def _tokens_fit(self, tenant: str, tokens: int) -> bool:
        """An empty queue takes any number of tokens: a request over the bound could otherwise never be served."""
        waiting, known, most = self._waiting, self._tenants[tenant], self._most_tokens
        if most is None or not waiting or waiting.tokens + tokens <= most:
            return True
        return waiting.tokens_of(known.name) + tokens <= most * known.weight / self._weights
