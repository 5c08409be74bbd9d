"""The ledger of blocks: sharing, eviction, and an account that always balances."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.plan import Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import CacheConfig
from jaxserve.core.sequence import Request, Sequence

SIZE = 8
RETENTIONS = ("lru", "sessions")


def manager(blocks: int = 10, **options) -> BlockManager:
    return BlockManager(CacheConfig(**({"block_size": SIZE, "watermark": 0.0} | options)), blocks + 1)


def sequence(prompt: list[int], salt: str = "", tenant: str = "default") -> Sequence:
    request = Request(id="r", prompt=tuple(prompt), params=SamplingParams(), cache_salt=salt)
    return Sequence(request, 0, 1000, 0, tenant=tenant)


def admitted(blocks: BlockManager, prompt: list[int], salt: str = "") -> tuple[Sequence, int | None]:
    s = sequence(prompt, salt)
    shared = blocks.admit(s, len(prompt))
    if shared is not None:
        s.num_computed = len(prompt)
        blocks.note_computed(s)
    return s, shared


def test_full_blocks_of_an_equal_beginning_are_shared() -> None:
    blocks = manager()
    first, _ = admitted(blocks, list(range(20)))
    second, shared = admitted(blocks, [*range(16), 99])
    assert shared == 16 and second.blocks[:2] == first.blocks[:2] and second.blocks[2] != first.blocks[2]


def test_lookups_are_counted_in_tokens() -> None:
    """Of what is admitted; what may share nothing is not looked up."""
    blocks = manager(5)
    admitted(blocks, list(range(20)))
    admitted(blocks, [*range(16), 99])
    assert admitted(blocks, list(range(50, 90)))[1] is None
    scored = Request(id="r", prompt=tuple(range(8)), params=SamplingParams(prompt_logprobs=0))
    assert blocks.admit(Sequence(scored, 0, 1000, 0), 8) == 0
    assert (blocks.prefix_queries, blocks.prefix_hits) == (20 + 17, 16)


def test_one_token_is_always_left_to_compute() -> None:
    blocks = manager()
    admitted(blocks, list(range(16)))
    _, shared = admitted(blocks, list(range(16)))
    assert shared == 8


def test_no_salt_imitates_another_scope() -> None:
    """Whatever a tenant sends for a salt, it finds no block of another tenant, nor of the common pool."""
    blocks, prompt = manager(100), list(range(20))
    texts = ["", "a", "b", "ab", "a\x00", "\x00a", "1:a", "a1:", "default"]
    seen: set[bytes] = set()
    for scope in (None, *texts):
        for salt in texts:
            s = sequence(prompt, salt)
            s.prefix_scope = scope
            assert blocks.num_cached(s) == 0 and s.hashes[0] not in seen
            seen.add(s.hashes[0])
            blocks.admit(s, len(prompt))
            s.num_computed = len(prompt)
            blocks.note_computed(s)
            blocks.free(s)


def test_salts_isolate() -> None:
    blocks = manager()
    admitted(blocks, list(range(20)), "a")
    assert admitted(blocks, list(range(20)), "b")[1] == 0
    assert admitted(blocks, list(range(20)), "a" * 100)[1] == 0
    assert admitted(blocks, list(range(20)), "a")[1] == 16


@pytest.mark.parametrize("retention", RETENTIONS)
def test_freed_blocks_are_found_until_they_are_needed(retention: str) -> None:
    blocks = manager(4, prefix_retention=retention)
    first, _ = admitted(blocks, list(range(20)))
    blocks.free(first)
    again, shared = admitted(blocks, list(range(20)))
    assert shared == 16
    blocks.free(again)
    other, _ = admitted(blocks, list(range(100, 130)))
    assert len(other.blocks) == 4
    blocks.free(other)
    assert admitted(blocks, list(range(20)))[1] == 0


def test_what_was_decoded_is_shared_unless_chunks_are_aligned() -> None:
    for aligned_chunk, found in ((None, 16), (SIZE, 8)):
        blocks = BlockManager(CacheConfig(block_size=SIZE, watermark=0.0), 11, aligned_chunk=aligned_chunk)
        first, _ = admitted(blocks, list(range(12)))
        first.tokens.extend(range(12, 20))
        assert blocks.grow(first, 20)
        first.num_computed = 20
        blocks.note_computed(first)
        assert admitted(blocks, list(range(20)))[1] == found


@pytest.mark.parametrize("retention", RETENTIONS)
def test_the_end_of_a_prefix_is_evicted_first(retention: str) -> None:
    blocks = manager(4, prefix_retention=retention)
    first, _ = admitted(blocks, list(range(24)))
    blocks.free(first)
    other, _ = admitted(blocks, list(range(100, 110)))  # takes the unknown block and one cached
    blocks.free(other)
    assert admitted(blocks, list(range(24)))[1] == 16


def test_the_watermark_stays_free_unless_nobody_runs() -> None:
    blocks = manager(10, watermark=0.2)
    first, shared = admitted(blocks, [1] * 79)
    assert shared == 0 and len(first.blocks) == 10
    blocks.free(first)
    admitted(blocks, [2] * 8)
    assert admitted(blocks, [3] * 64)[1] is None
    assert admitted(blocks, [3] * 56)[1] == 0


@pytest.mark.parametrize("retention", RETENTIONS)
def test_dropping_prefixes_forgets_content(retention: str) -> None:
    blocks = manager(prefix_retention=retention)
    first, _ = admitted(blocks, list(range(20)))
    blocks.free(first)
    blocks.drop_prefixes()
    assert blocks.pool.num_cached == 0 and admitted(blocks, list(range(20)))[1] == 0


def test_a_prefix_that_is_not_to_be_trusted_is_found_nowhere() -> None:
    """Not in the blocks that it held and shares, not in those it gave back, and not in host memory."""
    tiers = TierLedger(host_blocks=4)
    blocks = BlockManager(CacheConfig(block_size=SIZE, watermark=0.0, offload_prefixes=True), 6, tiers=tiers)
    first, _ = admitted(blocks, list(range(20)))
    blocks.free(first)
    other, _ = admitted(blocks, [*range(200, 232)])  # evicts the second block into host memory
    assert tiers.num_prefixes == 1 and blocks.num_cached(first) == 8
    tiers.take_moves()
    blocks.free(other)
    bad, shared = admitted(blocks, list(range(20)))
    tiers.take_moves()
    assert shared == 16 and tiers.num_prefixes > 0
    sharer, shared = admitted(blocks, list(range(18)))
    assert shared == 16
    blocks.forget_prefix(bad)
    kept = tiers.num_prefixes
    assert blocks.num_cached(sequence(list(range(20)))) == 0 and blocks.num_cached(other) >= 8
    blocks.free(bad)
    blocks.free(sharer)
    assert blocks.pool.num_free == blocks.pool.capacity and tiers.used(Tier.HOST) == kept
    assert admitted(blocks, list(range(20)))[1] == 0


@pytest.mark.parametrize("retention", ["lru", "sessions"])
def test_a_forgotten_prefix_that_no_sequence_holds_is_as_good_as_empty(retention: str) -> None:
    blocks = manager(4, prefix_retention=retention)
    bad, _ = admitted(blocks, list(range(20)))
    sharer, shared = admitted(blocks, list(range(18)))
    assert shared == 16
    blocks.free(sharer)
    other, _ = admitted(blocks, list(range(50, 54)))
    blocks.free(bad)
    blocks.free(other)
    assert blocks.pool.num_cached == 2
    again, shared = admitted(blocks, list(range(20)))
    assert shared == 16
    blocks.free(again)
    blocks.forget_prefix(again)
    assert blocks.pool.num_cached == 0 and blocks.pool.num_free == 4
    assert admitted(blocks, list(range(20)))[1] == 0


def test_a_pool_of_any_size_costs_what_is_used_of_it() -> None:
    """A simulated one may have more blocks than this machine could list."""
    blocks = manager(10**15)
    first, _ = admitted(blocks, list(range(20)))
    assert first.blocks == [1, 2, 3] and blocks.pool.num_free == 10**15 - 3 and blocks.pool.references(10**15) == 0
    blocks.free(first)
    again, shared = admitted(blocks, list(range(20)))
    assert shared == 16 and again.blocks == [1, 2, 3], "freed blocks go before those that were never taken"
    assert blocks.pool.num_free == 10**15 - 3 and blocks.pool.is_free(4)


class Ledger(RuleBasedStateMachine):
    """Sequences of several tenants come, grow and go; the pool's account must balance after each."""

    retention = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = manager(12, prefix_retention=self.retention)
        self.live: list[Sequence] = []
        self.now = 0.0

    @rule(seconds=st.sampled_from([0.01, 1.0, 10.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.blocks.tick(self.now)

    @rule(
        family=st.integers(0, 2), length=st.integers(1, 60), branch=st.integers(0, 60), chunk=st.integers(1, 60),
        tenant=st.sampled_from("abc"),
    )  # fmt: skip
    def admit(self, family: int, length: int, branch: int, chunk: int, tenant: str) -> None:
        s = sequence([family if i < branch else 5 for i in range(length)], tenant=tenant)
        free = self.blocks.pool.num_free
        shared = self.blocks.admit(s, chunk)
        if shared is None:
            assert self.blocks.pool.num_free == free and not s.blocks
            return
        s.num_computed = min(shared + chunk, length)
        self.blocks.note_computed(s)
        self.live.append(s)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 20))
    def grow(self, data: st.DataObject, more: int) -> None:
        s = data.draw(st.sampled_from(self.live))
        held = len(s.blocks)
        if self.blocks.grow(s, s.num_computed + more):
            s.tokens.extend([9] * max(0, s.num_computed + more - len(s.tokens)))
            s.num_computed += more
            self.blocks.note_computed(s)
        else:
            assert len(s.blocks) == held

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from(self.live))
        self.live.remove(s)
        self.blocks.free(s)

    @rule()
    def drop(self) -> None:
        if not self.live:
            self.blocks.drop_prefixes()

    @invariant()
    def the_account_balances(self) -> None:
        pool = self.blocks.pool
        holders = [block for s in self.live for block in s.blocks]
        assert 0 not in holders
        for block in range(1, pool.num_blocks):
            assert pool.references(block) == holders.count(block)
        assert pool.num_free == pool.capacity - len(set(holders))
        cached = [block for block in range(1, pool.num_blocks) if pool.is_cached(block)]
        assert pool.num_cached == len(cached) and not set(cached) & set(holders)
        for s in self.live:
            assert len(set(s.blocks)) == len(s.blocks) >= self.blocks.blocks_for(s.num_computed)

    @invariant()
    def shared_blocks_hold_equal_tokens(self) -> None:
        content: dict[int, tuple[int, ...]] = {}
        for s in self.live:
            for i in range(s.num_computed // SIZE):
                assert content.setdefault(s.blocks[i], tuple(s.tokens[: (i + 1) * SIZE])) == tuple(
                    s.tokens[: (i + 1) * SIZE]
                )


class SessionLedger(Ledger):
    retention = "sessions"
    copies = False
    """Two sequences have computed the same beginning side by side."""

    @invariant()
    def a_prefix_is_kept_from_its_beginning(self) -> None:
        """A cached block is of use only with those before it.

        Except behind a copy of a beginning: the copy has no name, and is gone when its sequence ends.
        """
        hashed = self.blocks._prefixes._block_of
        for s in self.live:
            named = [hashed.get(link) for link in s.hashes[: s.num_registered]]
            self.copies = self.copies or named != s.blocks[: s.num_registered]
        if self.copies:
            return
        for family in range(3):
            for branch in range(0, 61):
                links = self.blocks._links(sequence([family if i < branch else 5 for i in range(61)]))
                there = [link in hashed for link in links]
                assert there == sorted(there, reverse=True)


Ledger.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
SessionLedger.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = Ledger.TestCase
TestSessionLedger = SessionLedger.TestCase
