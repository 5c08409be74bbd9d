"""Which bucket sizes waste least: exact, from a histogram of the steps that a workload takes.

A step of `d` decode rows and `p` prefill tokens runs in the smallest bucket that holds it. Along one axis the best `k`
sizes are a shortest path over the sorted sizes, found by dynamic programming (the one-dimensional k-median problem
with one-sided distances; Wang and Song, "Ckmeans.1d.dp", 2011):

    steps      .  ..  .:.      ..::.         .:
    sizes         |     |          |          |         every step pays for the size at its right
    best[k][j] = min over i < j of best[k - 1][i] + cost of the steps in (i, j], all at size j

The axes meet in the number of programs: `a` decode sizes, `b` prefill sizes and `m` sizes of decode rows in mixed steps
make a + b (m + 1) programs. All sets of mixed sizes are tried, with at most `max_mixed` sizes from at most
`MIXED_CANDIDATES`; for each the prefill sizes are found exactly, whatever the cost of a program is, and then the split.
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxserve.core.sections import BucketConfig
from jaxserve.core.settings import require

Steps = Mapping[tuple[int, int], int]
"""(decode rows, prefill tokens) -> how many such steps."""
ProgramCost = Callable[[int, int], float]
"""(padded decode rows, padded prefill tokens) -> what one run of the program costs: tokens, or seconds."""

MIXED_CANDIDATES = 16
"""With three mixed sizes of 16 there are 121 sets to try."""


@dataclass(frozen=True, slots=True)
class BucketSet:
    """Sizes, as `BucketConfig` takes them, and what the steps cost with them."""

    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    mixed_decode: tuple[int, ...]
    cost: float = 0.0

    @property
    def programs(self) -> int:
        return len(self.decode) + len(self.prefill) * (len(self.mixed_decode) + 1)

    def config(self, prefill_rows: int) -> BucketConfig:
        return BucketConfig(
            decode_buckets=self.decode,
            prefill_buckets=self.prefill,
            mixed_decode_buckets=self.mixed_decode,
            prefill_rows=prefill_rows,
        )

    def pad(self, decode_rows: int, prefill_tokens: int) -> tuple[int, int]:
        """The bucket that a step runs in."""
        if not prefill_tokens:
            return _at_least(self.decode, decode_rows), 0
        return _at_least(self.mixed_decode, decode_rows) if decode_rows else 0, _at_least(self.prefill, prefill_tokens)


def tokens(decode_rows: int, prefill_tokens: int) -> float:
    """The plainest cost of a program: its padded tokens."""
    return decode_rows + prefill_tokens


def cost_of(buckets: BucketSet, steps: Steps, cost: ProgramCost = tokens) -> float:
    """What the steps cost in these buckets, all together."""
    return sum(count * cost(*buckets.pad(d, p)) for (d, p), count in steps.items())


def best_sets(
    steps: Steps,
    max_programs: int,
    *,
    max_decode: int,
    max_prefill: int,
    decode_multiple: int = 1,
    prefill_multiple: int = 1,
    max_mixed: int = 3,
    cost: ProgramCost = tokens,
) -> list[BucketSet]:
    """The cheapest set for every number of programs that gains something, the fewest programs first.

    Sizes are multiples of `decode_multiple` and `prefill_multiple`, and the last ones are `max_decode` rows and
    `max_prefill` tokens whatever the histogram holds: a set must serve any step. More sizes never cost more, so each
    set is cheaper than the one before it, and the last is the best with at most `max_programs`.

    Raises:
      ConfigError: `max_programs` is below 3: one decode-only, one prefill-only, one mixed.
    """
    require(max_programs >= 3, "programs", max_programs, "at least 3: one decode-only, one prefill-only, one mixed")
    decode = _Axis.of([d for d, p in steps if not p], max_decode, decode_multiple)
    prefill = _Axis.of([p for _, p in steps if p], max_prefill, prefill_multiple)
    alone = np.zeros((len(decode.sizes), 1))
    for (d, p), count in steps.items():
        if not p:
            alone[decode.index(d), 0] += count
    program = np.array([[cost(size, 0)] for size in decode.sizes])
    decode_paths = _shortest(_segments(alone, program), max_programs - 2)

    best: dict[int, BucketSet] = {}
    for mixed in _mixed_sets(steps, max_decode, decode_multiple, max_mixed):
        widths = (0, *mixed)
        counts = np.zeros((len(prefill.sizes), len(widths)))
        for (d, p), count in steps.items():
            if p:
                counts[prefill.index(p), bisect_left(widths, d)] += count
        program = np.array([[cost(width, size) for width in widths] for size in prefill.sizes])
        paths = _shortest(_segments(counts, program), (max_programs - 1) // len(widths))
        for (b, (p_cost, p_path)), (a, (d_cost, d_path)) in itertools.product(
            enumerate(paths, 1), enumerate(decode_paths, 1)
        ):
            number = a + b * len(widths)
            if number <= max_programs and (number not in best or d_cost + p_cost < best[number].cost):
                best[number] = BucketSet(decode.at(d_path), prefill.at(p_path), mixed, d_cost + p_cost)
    return _improving(best)


def powers_of_two(
    steps: Steps,
    max_programs: int,
    *,
    max_decode: int,
    max_prefill: int,
    max_mixed: int = 3,
    cost: ProgramCost = tokens,
) -> BucketSet:
    """The opponent at equal cost of compilation: the best set of halvings of the limits with so many programs."""
    decode, prefill = _halvings(max_decode), _halvings(max_prefill)
    found: list[BucketSet] = []
    for a, m in itertools.product(range(1, len(decode) + 1), range(1, min(max_mixed, len(decode)) + 1)):
        b = min((max_programs - a) // (m + 1), len(prefill))
        if b >= 1:
            found.append(BucketSet(decode[-a:], prefill[-b:], decode[-m:]))
    require(bool(found), "programs", max_programs, "at least 3")
    return min((_with_cost(buckets, steps, cost) for buckets in found), key=lambda buckets: buckets.cost)


def _with_cost(buckets: BucketSet, steps: Steps, cost: ProgramCost) -> BucketSet:
    return BucketSet(buckets.decode, buckets.prefill, buckets.mixed_decode, cost_of(buckets, steps, cost))


def _improving(best: dict[int, BucketSet]) -> list[BucketSet]:
    """Without the sets that are no cheaper than a smaller one."""
    kept: list[BucketSet] = []
    for number in sorted(best):
        if not kept or best[number].cost < kept[-1].cost * (1.0 - 1e-12):
            kept.append(best[number])
    return kept


def _mixed_sets(steps: Steps, max_decode: int, multiple: int, most: int) -> list[tuple[int, ...]]:
    """Sets of decode rows for mixed steps; the last is always the limit."""
    counts: dict[int, int] = {}
    for (d, p), count in steps.items():
        if d and p:
            size = min(_rounded(d, multiple), max_decode)
            counts[size] = counts.get(size, 0) + count
    counts.pop(max_decode, None)
    inner = sorted(counts)
    if len(inner) > MIXED_CANDIDATES:  # by quantiles of the steps: fine where they are many
        cumulated = list(itertools.accumulate(counts[size] for size in inner))
        places = [(i + 0.5) / MIXED_CANDIDATES * cumulated[-1] for i in range(MIXED_CANDIDATES)]
        inner = sorted({inner[bisect_left(cumulated, place)] for place in places})
    return [(*chosen, max_decode) for m in range(most) for chosen in itertools.combinations(inner, m)]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Candidate sizes, growing; the last is the limit."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, values: list[int], limit: int, multiple: int) -> "_Axis":
        return cls(tuple(sorted({*(min(_rounded(value, multiple), limit) for value in values), limit})))

    def index(self, value: int) -> int:
        return bisect_left(self.sizes, value)

    def at(self, path: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.sizes[i] for i in path)


def _segments(counts: NDArray[np.float64], program: NDArray[np.float64]) -> NDArray[np.float64]:
    """[i, j]: what the steps at candidates i..j cost at candidate j; infinite below the diagonal.

    counts, program  # [candidates, widths]
    """
    n = len(counts)
    before = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])
    cost = np.sum(before[1:] * program, axis=1)[None, :] - before[:-1] @ program.T
    return np.where(np.arange(n)[:, None] <= np.arange(n)[None, :], cost, np.inf)


def _shortest(segments: NDArray[np.float64], most: int) -> list[tuple[float, list[int]]]:
    """For 1, 2, .. `most` sizes: (cost, candidates chosen), the last candidate always among them."""
    n = len(segments)
    best = segments[0]  # [j]: one size, everything up to j
    came: list[NDArray[np.intp]] = []
    found = [(float(best[-1]), [n - 1])]
    for k in range(2, min(most, n) + 1):
        through = best[:-1, None] + segments[1:, :]  # [i, j]: up to i before, then i + 1 .. j at size j
        came.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
        path = [n - 1]
        for links in reversed(came):
            path.append(int(links[path[-1]]))
        found.append((float(best[-1]), path[::-1]))
        assert len(path) == k
    return found


def _halvings(limit: int) -> tuple[int, ...]:
    sizes = [limit]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sorted(set(sizes)))


def _rounded(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]
