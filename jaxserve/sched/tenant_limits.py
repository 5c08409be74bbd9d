"""What a tenant may ask for at most: at once, a second, a minute. One more is refused, with when to come back.

Rates are token buckets. A request is charged when it is queued, and not for being refused. Of `tokens_per_minute` it is
charged its prompt and, for each completion, `max_tokens`; without `max_tokens` the output length that nine of ten of
the tenant's requests stay within. When a completion ends, the charge is corrected to the tokens that it really had. So
a bucket may run into debt, which the tenant waits off.
"""

from dataclasses import dataclass

from jaxserve.core.errors import QueueFull, RateState, RequestTooLarge, TooBusy
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenant
from jaxserve.sched.output_lengths import ENOUGH, OutputLengths

MINUTE_S = 60.0
CHARGED_QUANTILE = 0.9


class TenantLimits:
    """One tenant's. Writes `Sequence.booked_tokens`."""

    def __init__(self, tenant: Tenant, outputs: OutputLengths) -> None:
        self._tenant, self._outputs = tenant, outputs
        self._requests = self._tokens = None
        if (per_s := tenant.requests_per_s) is not None:
            self._requests = TokenBucket(max(per_s, 1.0), per_s)
        if (per_minute := tenant.tokens_per_minute) is not None:
            self._tokens = TokenBucket(float(per_minute), per_minute / MINUTE_S)

    def check(self, sequences: list[Sequence], waiting: int, live: int, now: float) -> None:
        """Whether a request may be queued. `waiting`, `live`: sequences of the tenant that wait, and that wait or run.

        Raises:
          QueueFull, TooBusy: not now. RequestTooLarge: it is over `tokens_per_minute` by itself.
        """
        tenant, count = self._tenant, len(sequences)
        if tenant.max_waiting is not None and waiting + count > tenant.max_waiting:
            raise QueueFull(
                waiting, tenant.max_waiting, f"max_waiting of tenant {tenant.name!r}", reason="tenant_limit"
            )
        if tenant.max_concurrent is not None and live + count > tenant.max_concurrent:
            raise TooBusy(
                f"{live} requests wait or run and the bound is {tenant.max_concurrent} (max_concurrent of tenant "
                f"{tenant.name!r}): try again when one has ended",
                "tenant_limit",
                1.0,
            )
        if (bucket := self._requests) is not None and (wait_s := bucket.wait_s(now, 1.0)):
            raise TooBusy(
                f"tenant {tenant.name!r} is over its {bucket.per_s:g} requests a second: try again in {wait_s:.2g} s",
                "rate_limit",
                wait_s,
                bucket.state("requests", now),
            )
        if self._tokens is not None:
            self._check_tokens(self._tokens, sum(self._charges(sequences, self._tokens)), now)

    def _check_tokens(self, bucket: "TokenBucket", charge: int, now: float) -> None:
        whose = f"tokens_per_minute of tenant {self._tenant.name!r}"
        if charge > bucket.most:
            raise RequestTooLarge(charge, int(bucket.most), whose)
        if wait_s := bucket.wait_s(now, float(charge)):
            raise TooBusy(
                f"this request may use {charge} tokens, and {max(int(bucket.left), 0)} of {bucket.most:g} are left "
                f"({whose}): try again in {wait_s:.2g} s",
                "rate_limit",
                wait_s,
                bucket.state("tokens", now),
            )

    def _charges(self, sequences: list[Sequence], bucket: "TokenBucket") -> list[int]:
        """Tokens that each sequence may use; the prompt counts once."""
        charges: list[int] = []
        for sequence in sequences:
            prompt = sequence.num_prompt if sequence.index == 0 else 0
            outputs = sequence.max_len - sequence.num_prompt
            if sequence.params.max_tokens is None and self._outputs.known(sequence.tenant):
                outputs = self._outputs.quantile(sequence.tenant, CHARGED_QUANTILE, outputs)
            elif sequence.params.max_tokens is None:
                outputs = min(outputs, int(bucket.most) // ENOUGH)
            charges.append(prompt + outputs)
        return charges

    def book(self, sequences: list[Sequence], now: float) -> None:
        """The request is queued: charge it."""
        if self._requests is not None:
            self._requests.take(now, 1.0)
        if self._tokens is not None:
            for sequence, charge in zip(sequences, self._charges(sequences, self._tokens), strict=True):
                sequence.booked_tokens = charge
                self._tokens.take(now, float(charge))

    def settle(self, sequence: Sequence) -> None:
        """The sequence has ended: correct its charge. A prompt that never ran costs nothing."""
        if self._tokens is not None:
            prompt = sequence.num_prompt if sequence.index == 0 and sequence.first_scheduled_s is not None else 0
            self._tokens.give_back(sequence.booked_tokens - prompt - sequence.num_outputs)


@dataclass(slots=True)
class TokenBucket:
    """Holds `most` at first and at most; `per_s` flow in. `left` is below 0 while more was taken than there was."""

    most: float
    per_s: float
    left: float = 0.0
    _at_s: float | None = None

    def wait_s(self, now: float, amount: float) -> float:
        """Seconds until `amount` is there; 0: it is."""
        self._fill(now)
        return max(amount - self.left, 0.0) / self.per_s

    def take(self, now: float, amount: float) -> None:
        self._fill(now)
        self.left -= amount

    def give_back(self, amount: float) -> None:
        """`amount` below 0: more was used than was taken."""
        self.left = min(self.left + amount, self.most)

    def state(self, kind: str, now: float) -> RateState:
        self._fill(now)
        return RateState(kind, int(self.most), max(int(self.left), 0), (self.most - self.left) / self.per_s)

    def _fill(self, now: float) -> None:
        if self._at_s is None:
            self.left = self.most
        else:
            self.left = min(self.left + (now - self._at_s) * self.per_s, self.most)
        self._at_s = now
