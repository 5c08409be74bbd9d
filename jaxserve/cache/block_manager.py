"""Gives blocks to sequences and takes them back; finds shared prefixes.

The only writer of `Sequence.blocks`. It is a ledger: the executor has the bytes, and is handed block tables in every
plan. A full block is registered with the prefix cache when the step that fills it is *planned*: steps run in
order on the device, so a sequence that finds it there later reads it after it was written.

With tiers (`cache.tiers`) a preempted sequence's blocks can be parked in host memory or on the disk instead of given
up, and prefix blocks that are evicted are kept in host memory. Both come back on admission; the sequence then has its
first row in the plan after.
"""

from typing import NamedTuple

from jaxserve.cache.block_pool import BlockPool
from jaxserve.cache.prefix_cache import PrefixCache
from jaxserve.cache.retention import LeastRecentlyUsed, PoolShares
from jaxserve.cache.session_retention import SessionRetention
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.plan import Tier
from jaxserve.core.sections import CacheConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants


class _Known(NamedTuple):
    """What need not be computed of a sequence."""

    blocks: list[int]
    """On the device, in the prefix cache."""
    kept: list[bytes]
    """Links of the blocks after those, which are in host memory as kept prefixes."""
    tokens: int
    """In both, or of what was parked."""
    links: list[bytes]
    """Hashes of the blocks that it may share."""


class BlockManager:
    """Blocks for `num_blocks` x `block_size` tokens, the scratch block included.

    `aligned_chunk`: deterministic mode (see `BucketTable`). A shared prefix ends at a multiple of this many tokens, and
    blocks that a decode step wrote are not shared.
    """

    def __init__(
        self,
        config: CacheConfig,
        num_blocks: int,
        *,
        tiers: TierLedger | None = None,
        aligned_chunk: int | None = None,
        tenants: Tenants | None = None,
    ) -> None:
        self.block_size = config.block_size
        self._caching = config.enable_prefix_caching
        self._aligned_chunk = aligned_chunk
        self.tiers = tiers or TierLedger()
        self._keep_prefixes = config.offload_prefixes
        self._prefixes = PrefixCache(config.block_size)
        self._shares = PoolShares(num_blocks - 1, tenants)
        kept = SessionRetention if config.prefix_retention == "sessions" else LeastRecentlyUsed
        self._retention = kept(self._shares)
        self._pool = BlockPool(num_blocks, self._retention, on_evict=self._evict)
        self._now = 0.0
        self._watermark = max(1, int(config.watermark * self._pool.capacity)) if config.watermark else 0
        self.prefix_queries = 0
        """Tokens looked up in the prefix cache, and below, tokens found there."""
        self.prefix_hits = 0

    @property
    def pool(self) -> BlockPool:
        return self._pool

    @property
    def max_tokens(self) -> int:
        """Tokens that one sequence could hold with the pool to itself."""
        return self._pool.capacity * self.block_size

    @property
    def watermark(self) -> int:
        """Blocks that admission leaves free."""
        return self._watermark

    @property
    def usage(self) -> float:
        """Share of the pool that sequences hold."""
        return 1.0 - self._pool.num_free / self._pool.capacity

    def tick(self, now: float) -> None:
        """What is admitted and freed from here on happens at `now`."""
        self._now = now

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def shortage(self, sequence: Sequence, chunk: int, reserve: int = 0) -> int:
        """Blocks that are missing for `admit` with the same arguments; 0 or less: it would succeed."""
        return self._missing(sequence, self._known(sequence), chunk, reserve)

    def admit(self, sequence: Sequence, chunk: int, reserve: int = 0) -> int | None:
        """Blocks for what is known of the sequence (a shared prefix, or what was parked) and the next `chunk` tokens.

        Returns the number of known tokens, or None, and nothing is changed, when the blocks do not suffice with the
        watermark left free. `reserve`: hold blocks for this many tokens from the start. A parked sequence must be
        `ready`.
        """
        assert not sequence.blocks
        known, parked = self._known(sequence), self.tiers.parked(sequence)
        if self._missing(sequence, known, chunk, reserve) > 0:
            return None
        if self._caching:
            self._retention.admitted(sequence, known.links, known.blocks, self._now)
        for block in known.blocks:
            self._pool.share(block)
        kept = self.tiers.claim_prefixes(known.kept)  # before `take`, which may evict prefixes into host memory
        fresh = self._take(sequence, self._wanted(sequence, known, chunk, reserve))
        sequence.blocks = known.blocks + fresh
        self._shares.uses(sequence.tenant, len(known.blocks))
        sequence.num_registered = len(known.blocks)
        if parked is not None:
            self.tiers.unpark(sequence, len(known.blocks), sequence.blocks)
        self.tiers.load_prefixes(sequence, kept, fresh)
        if self._caching and sequence.shares_prefix and parked is None:
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += known.tokens
        return known.tokens

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for the sequence's first `tokens` tokens; False, and nothing is changed, without enough blocks."""
        missing = self.blocks_for(tokens) - len(sequence.blocks)
        if missing <= 0:
            return True
        if missing > self._pool.num_free:
            return False
        sequence.blocks.extend(self._take(sequence, missing))
        return True

    def _take(self, sequence: Sequence, count: int) -> list[int]:
        tenant = sequence.tenant
        self._shares.uses(tenant, count)
        return [self._pool.take(tenant) for _ in range(count)]

    def note_computed(self, sequence: Sequence) -> None:
        """Register the blocks that are full of known tokens, computed or in a step under way."""
        if not self._caching:
            return
        known = sequence.num_prompt if self._aligned_chunk else len(sequence.tokens)
        full = min(sequence.num_computed, known) // self.block_size
        if full <= sequence.num_registered:
            return
        hashes = self._prefixes.hash_blocks(sequence, full)
        for i in range(sequence.num_registered, full):
            self._prefixes.register(sequence.blocks[i], hashes[i])
        sequence.num_registered = full

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back. The last ones come first to eviction: a prefix is worth more the nearer its start."""
        blocks, registered = sequence.blocks, sequence.num_registered
        self._shares.uses(sequence.tenant, -len(blocks))
        for block in reversed(blocks[registered:]):
            self._pool.release(block)
        places = self._retention.places(sequence, self._now) if self._caching else ()
        for block, place in zip(reversed(blocks[:registered]), reversed(places), strict=True):
            self._pool.release(block, place if self._prefixes.knows(block) else None)
        sequence.blocks = []
        sequence.num_registered = 0

    def park(self, sequence: Sequence, tier: Tier | None) -> None:
        """Take all blocks of a preempted sequence back, and save its computed K/V in `tier`, which must have room.

        `tier` None: they are dropped. The sequence must have no row in the plan that is being made.
        """
        if tier is not Tier.DISK:
            self.tiers.disk_was_not_tried()
        if tier is not None and sequence.num_computed:
            held = sequence.blocks[: self.blocks_for(sequence.num_computed)]
            self.tiers.park(sequence, held, sequence.num_computed, tier)
        self.free(sequence)

    def forget_prefix(self, sequence: Sequence) -> None:
        """Its content is not to be trusted: no later request finds a block of its tokens, here or in host memory.

        Sequences that share such a block keep it.
        """
        for link in sequence.hashes:
            block = self._prefixes.forget_link(link)
            if block is not None:
                self._pool.forget(block)
            self.tiers.drop_prefix(link)

    def drop_prefixes(self) -> None:
        """Forget all cached content: the weights changed."""
        self._prefixes.clear()
        self._pool.forget_cached()
        self.tiers.drop_prefixes()

    def _evict(self, block: int) -> None:
        link = self._prefixes.forget(block)
        if self._keep_prefixes:
            self.tiers.keep_prefix(link, block)

    def num_cached(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence that the prefix cache would give it now."""
        return len(self._prefixes.match(self._links(sequence))) * self.block_size

    def _links(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the blocks that it may share; none if it shares nothing."""
        return self._prefixes.links(sequence) if self._caching and sequence.shares_prefix else []

    def _known(self, sequence: Sequence) -> _Known:
        """What need not be computed of a waiting sequence."""
        parked, links = self.tiers.parked(sequence), self._links(sequence)
        blocks = self._prefixes.match(links)
        kept = self.tiers.find_prefixes(links[len(blocks) :]) if parked is None else []
        tokens = (len(blocks) + len(kept)) * self.block_size
        tokens -= tokens % (self._aligned_chunk or 1)
        shared = tokens // self.block_size
        if parked is not None:
            tokens = max(tokens, min(parked.tokens, parked.intact * self.block_size))
        return _Known(blocks[:shared], kept[: max(shared - len(blocks), 0)], tokens, links)

    def _wanted(self, sequence: Sequence, known: _Known, chunk: int, reserve: int) -> int:
        """Fresh blocks that its admission takes."""
        tokens = max(min(known.tokens + chunk, len(sequence.tokens)), reserve)
        return self.blocks_for(tokens) - len(known.blocks)

    def _missing(self, sequence: Sequence, known: _Known, chunk: int, reserve: int) -> int:
        revived = sum(1 for block in known.blocks if self._pool.is_free(block))
        idle = self._pool.num_free == self._pool.capacity
        watermark = 0 if idle else self._watermark
        return self._wanted(sequence, known, chunk, reserve) + revived + watermark - self._pool.num_free
