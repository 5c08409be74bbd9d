"""How long after its last use a prefix is used again, learnt by kind and age, and what that makes it worth.

    age           0    0.03   ...   3.5   5.3   8.0    12   ...   seconds; each bucket is 1.5 times as wide as the last
    at risk      40      40          38    31    11     2         prefixes that reached this age
    returned      0       2           7    20     9     1         of these, used again before the next

The value of a prefix is the best rate of returns that keeping it can bring, over all the times it could be kept:

    value(age) = max over later ages b of   P(used again before b) / E(time until then, or until b)

This is the Gittins index of a job that may end at any moment. If prefixes are used again soon or never, the value
falls with the age: the least recently used one goes first. If think times are regular it rises: the one used last goes
first, as its next use is furthest away. Observations fade, so that the figures follow the traffic.
"""

import enum

FIRST_S = 1 / 32
RATIO = 1.5
AGES = 30
"""Buckets; the last one begins after about two hours and has no end."""
WIDTHS_S = tuple(FIRST_S * RATIO**k for k in range(AGES))
BEGINS_S = tuple(sum(WIDTHS_S[:k]) for k in range(AGES))
"""The age with which each bucket begins."""

GUESS, WEIGHT = 0.05, 2.0
"""Without observations the same share returns in each bucket, which values the least recently used lowest; it counts
like `WEIGHT` prefixes at risk."""
REVALUED = 32
"""Observations of returns after which values are computed again."""
FADES = 1024
"""Observations of returns after which all counts are halved."""


class Kind(enum.IntEnum):
    """What is known of a prefix."""

    NEW = 0
    """Used by one request."""
    NAMED = 1
    """Used by one request, which has a `session_id`."""
    RETURNED = 2
    """Used by several requests, each of which went on where the one before ended: a session."""
    STEM = 3
    """Used by several requests that went on differently."""


class ReturnTimes:
    """Observations of one tenant."""

    def __init__(self) -> None:
        self._risk = [[0.0] * AGES for _ in Kind]
        self._returned = [[0.0] * AGES for _ in Kind]
        self._seen = self._since = 0
        """Returns and misses since the observations were halved, and since the values were computed."""
        guess = _values([0.0] * AGES, [0.0] * AGES)
        self._values = [guess for _ in Kind]

    def reached(self, kind: Kind, age: int) -> None:
        """A prefix reached the age bucket without being used again."""
        self._risk[kind][age] += 1.0

    def returned(self, kind: Kind, age: int) -> None:
        """A prefix was used again at that age."""
        self._returned[kind][age] += 1.0
        self._since += 1

    def missed(self) -> None:
        """A request came that used no prefix again."""
        self._since += 1

    @property
    def values(self) -> list[list[float]]:
        """Expected returns a second, by kind and age."""
        if self._since >= REVALUED:
            self._seen += self._since
            self._since = 0
            if self._seen >= FADES:
                self._seen = 0
                for row in (*self._risk, *self._returned):
                    row[:] = [count / 2 for count in row]
            self._values = [_values(self._risk[kind], self._returned[kind]) for kind in Kind]
        return self._values


def _values(risk: list[float], returned: list[float]) -> list[float]:
    chances = [(r + WEIGHT * GUESS) / (n + WEIGHT) for n, r in zip(risk, returned, strict=True)]
    found: list[float] = []
    for age in range(AGES):
        alive, returns, seconds, best = 1.0, 0.0, 0.0, 0.0
        for chance, width in zip(chances[age:], WIDTHS_S[age:], strict=True):
            chance = min(chance, 1.0)
            returns += alive * chance
            seconds += alive * width * (1.0 - 0.5 * chance)
            alive *= 1.0 - chance
            best = max(best, returns / seconds)
        found.append(best)
    return found
