"""The shapes a step can take.

Every program is compiled for a `Bucket`: so many decode rows, so many prefill tokens, so many prefill rows. A step is
padded to the smallest bucket that holds it. Decode-only steps have the finest choice, since they are the most frequent.

    decode only     (d, 0)   d in decode
    prefill only    (0, p)   p in prefill
    mixed           (d, p)   d in mixed_decode, p in prefill
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from jaxserve.core.plan import Bucket
from jaxserve.core.sections import BucketConfig, SchedulerConfig
from jaxserve.core.settings import require


@dataclass(frozen=True, slots=True)
class BucketTable:
    """All buckets of an engine. The tuples grow; `mixed_decode` may be empty: then no step mixes the two."""

    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    mixed_decode: tuple[int, ...]
    prefill_rows: int
    aligned_chunk: int | None = None
    """Deterministic mode: a step takes one prompt's chunk, which ends at a multiple of this many tokens; prefixes are
    shared at those multiples only, and no sequence is preempted. None: neither."""
    sample_sizes: tuple[int, ...] = field(init=False, repr=False)
    """Row counts that sampling programs exist for: fewer than buckets, for each size has three variants."""

    def __post_init__(self) -> None:
        widest = max((*self.mixed_decode, 0)) + self.prefill_rows
        sizes = {*_powers(self.prefill_rows, self.decode[-1], 4), self.decode[-1], widest}
        fitting = sorted(size for size in sizes if size <= max(widest, self.decode[-1]))
        object.__setattr__(self, "sample_sizes", tuple(fitting))

    @classmethod
    def from_config(
        cls, buckets: BucketConfig, limits: SchedulerConfig, *, deterministic: bool = False
    ) -> "BucketTable":
        """The configured sizes, or, where none are given, powers that end at the scheduler's limits.

        `deterministic`: the largest decode program and the largest prefill program, and no other.
        """
        seqs, tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        decode = buckets.decode_buckets or _powers(1, seqs, 4)
        prefill = buckets.prefill_buckets or _powers(min(64, tokens), tokens, 4)
        mixed = buckets.mixed_decode_buckets or tuple(sorted({decode[max(len(decode) - 2, 0)], decode[-1]}))
        require(decode[-1] >= seqs, "decode_buckets", decode, f"a last size of at least max_num_seqs ({seqs})")
        require(mixed[-1] >= seqs, "mixed_decode_buckets", mixed, f"a last size of at least max_num_seqs ({seqs})")
        if deterministic:
            return cls(decode[-1:], prefill[-1:], (), 1, aligned_chunk=prefill[-1])
        return cls(decode, prefill, mixed, min(buckets.prefill_rows, seqs))

    @property
    def mixes(self) -> bool:
        return bool(self.mixed_decode)

    @property
    def max_prefill_tokens(self) -> int:
        return self.prefill[-1]

    def all(self) -> list[Bucket]:
        """Every bucket, the widest of its kind first: the first two can serve anything."""
        wide = self.mixed_decode or (0,)
        mixed = [self._bucket(d, p) for p in reversed(self.prefill) for d in reversed(wide)]
        decode = [self._bucket(d, 0) for d in reversed(self.decode)]
        prefill = [self._bucket(0, p) for p in reversed(self.prefill)] if self.mixed_decode else []
        return mixed[:1] + decode + mixed[1:] + prefill

    def fit(self, decode_rows: int, prefill_tokens: int) -> Bucket:
        """The smallest bucket for a step."""
        if not prefill_tokens:
            return self._bucket(_at_least(self.decode, decode_rows), 0)
        decode = _at_least(self.mixed_decode, decode_rows) if decode_rows else 0
        return self._bucket(decode, _at_least(self.prefill, prefill_tokens))

    def _bucket(self, decode_rows: int, prefill_tokens: int) -> Bucket:
        rows = self.prefill_rows if prefill_tokens else 0
        return Bucket(decode_rows, prefill_tokens, rows, _at_least(self.sample_sizes, decode_rows + rows))

    def prefill_edges(self, tokens: int) -> tuple[int, int]:
        """The bucket sizes around so many prefill tokens: (largest that they fill, smallest that holds them).

        0 ..... 64 .... 128 ......... 256        130 tokens -> (128, 256); 128 -> (128, 128)
        """
        above = bisect_left(self.prefill, tokens)
        upper = self.prefill[above]
        lower = upper if upper == tokens else (self.prefill[above - 1] if above else 0)
        return lower, upper


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]


def _powers(first: int, last: int, factor: int) -> tuple[int, ...]:
    sizes: list[int] = []
    size = first
    while size < last:
        sizes.append(size)
        size *= factor
    return (*sizes, last)
