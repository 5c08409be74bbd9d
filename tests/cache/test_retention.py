"""Which cached blocks go first: by recency or by sessions, and whose with several tenants."""

import pytest

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.retention import PRESENT_S, PoolShares
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import CacheConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.core.tenants import Tenant, Tenants

SIZE = 8
RETENTIONS = ("lru", "sessions")


class Bench:
    """Requests that are served at once: each is admitted, computed and freed at a time."""

    def __init__(self, blocks: int, retention: str, tenants: Tenants | None = None) -> None:
        config = CacheConfig(block_size=SIZE, watermark=0.0, prefix_retention=retention)
        self.blocks = BlockManager(config, blocks + 1, tenants=tenants)
        self.now = 0.0

    def serve(self, prefix: list[int], tenant: str = "default", session_id: str | None = None) -> int:
        """One request whose prompt has a block of each of those tokens, and one token more. Returns blocks found."""
        s = self.admit(prefix, tenant, session_id)
        found = s.num_cached
        self.blocks.free(s)
        return found

    def admit(self, prefix: list[int], tenant: str = "default", session_id: str | None = None) -> Sequence:
        prompt = (*tuple(token for token in prefix for _ in range(SIZE)), 0)
        request = Request(id="r", prompt=prompt, params=SamplingParams(), cache_salt=tenant, session_id=session_id)
        s = Sequence(request, 0, 10_000, 0, tenant=tenant)
        self.blocks.tick(self.now)
        known = self.blocks.admit(s, len(prompt))
        assert known is not None
        s.num_cached = known // SIZE
        s.num_computed = len(prompt)
        self.blocks.note_computed(s)
        return s

    def found(self, prefix: list[int], tenant: str = "default") -> int:
        """Blocks of the prefix that are cached now."""
        prompt = (*tuple(token for token in prefix for _ in range(SIZE)), 0)
        request = Request(id="r", prompt=prompt, params=SamplingParams(), cache_salt=tenant)
        return self.blocks.num_cached(Sequence(request, 0, 10_000, 0, tenant=tenant)) // SIZE


def rounds(bench: Bench, sessions: int, count: int, beside: int = 0) -> float:
    """Sessions of ten blocks take turns, one a second, and `beside` single documents a turn. Share found at the end."""
    found = asked = junk = 0
    for turn in range(count):
        for name in range(sessions):
            bench.now += 1.0
            hits = bench.serve([1000 * (name + 1) + k for k in range(10)])
            if turn >= count // 2:
                found, asked = found + hits, asked + 10
            for _ in range(beside):
                junk += 1
                bench.serve([-10 * junk - k for k in range(5)])
    return found / asked


@pytest.mark.parametrize(("retention", "least", "most"), [("lru", 0.0, 0.0), ("sessions", 0.5, 0.6)])
def test_regular_turns_of_more_sessions_than_fit(retention: str, least: float, most: float) -> None:
    """Ten sessions, room for half of them and one request more: LRU evicts each just before its next turn."""
    assert least <= rounds(Bench(61, retention), sessions=10, count=30) <= most


def test_single_documents_do_not_displace_sessions() -> None:
    assert rounds(Bench(70, "sessions"), sessions=6, count=30, beside=1) > 0.9
    assert rounds(Bench(70, "lru"), sessions=6, count=30, beside=1) == 0.0


def test_what_branches_share_outlives_them() -> None:
    """A system prompt, and requests that go on differently: its branches lose their blocks first."""
    for retention in RETENTIONS:
        bench = Bench(30, retention)
        for name in range(40):
            bench.now += 1.0
            assert bench.serve([1, 2, 3, 1000 + name, 2000 + name]) == (3 if name else 0)
        bench.now += 1.0
        bench.serve(list(range(5000, 5025)))
        assert bench.found([1, 2, 3]) == 3, retention


def test_a_fork_of_a_session_keeps_what_both_share() -> None:
    bench = Bench(40, "sessions")
    session = list(range(1, 11))
    for _ in range(3):
        bench.now += 5.0
        bench.serve(session)
    one, two = (bench.admit([*session[:6], base, base + 1]) for base in (100, 200))
    assert (one.num_cached, two.num_cached) == (6, 6)
    bench.blocks.free(one)
    bench.blocks.free(two)
    assert bench.found(session) == 10 and bench.found([*session[:6], 200, 201]) == 8


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_a_tenant_within_its_share_loses_nothing_to_another(retention: str, repeats: int) -> None:
    """However often the other one sends each of its prompts, so that it looks like sessions that come back."""
    bench = Bench(100, retention, Tenants([Tenant(name="a"), Tenant(name="b")]))
    mine = [[1000 * name + k for k in range(8)] for name in range(1, 6)]
    for _ in range(2):
        for prefix in mine:
            bench.now += 1.0
            bench.serve(prefix, "a")
    for name in range(60):
        bench.now += 1.0
        for _ in range(repeats):
            bench.serve([-100 * (name + 1) - k for k in range(20)], "b")
    assert [bench.found(prefix, "a") for prefix in mine] == [8] * 5
    assert bench.blocks.pool.num_cached >= 98, "the rest is the other one's"


@pytest.mark.parametrize("retention", RETENTIONS)
def test_a_tenant_that_is_away_keeps_nothing_from_others(retention: str) -> None:
    bench = Bench(42, retention, Tenants([Tenant(name="a"), Tenant(name="b")]))
    bench.serve(list(range(1, 21)), "a")
    for name in range(10):
        bench.now += 1.0
        bench.serve([-100 * (name + 1) - k for k in range(20)], "b")
    assert bench.found(list(range(1, 21)), "a") == 20
    bench.now += PRESENT_S
    for name in range(10, 20):
        bench.now += 1.0
        bench.serve([-100 * (name + 1) - k for k in range(20)], "b")
    assert bench.found(list(range(1, 21)), "a") < 20


def test_shares_follow_guarantees_and_weights() -> None:
    tenants = Tenants([Tenant(name="a", kv_guaranteed=0.4), Tenant(name="b", weight=2.0), Tenant(name="c")])
    shares = PoolShares(100, tenants)
    for name in "abc":
        shares.seen(name, 1.0)
    shares.uses("a", 40)  # its guarantee: its weight alone would give it 25
    shares.uses("b", 41)  # of 60 x 2 / 3
    shares.uses("c", 14)
    assert list(shares.victims("c", ["a", "b", "c"])) == ["b", "c"]
    shares.uses("a", 1)
    assert list(shares.victims("c", ["a", "b"])) == ["a", "b"] and list(shares.victims("b", ["a"])) == ["a"]


def test_sessions_are_known_without_a_name() -> None:
    """The next turn begins with the last one, whether its blocks are still there or not."""
    bench = Bench(12, "sessions")
    prefix = [1, 2, 3]
    for turn in range(5):
        bench.now += 7.0
        bench.serve(prefix)
        prefix = [*prefix, 10 * turn + 100]
        bench.serve(list(range(5000 + 100 * turn, 5011 + 100 * turn)))
    (stretch,) = (s for s in bench.blocks._retention._marks.values() if s.end == len(prefix) - 1)
    assert stretch.kind.name == "RETURNED"
