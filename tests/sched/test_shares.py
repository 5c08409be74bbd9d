"""Which running sequences may be preempted for which claimant, case by case."""

from itertools import count

import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request, Sequence
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sched.shares import Shares

SIZE = 8
TENANTS = Tenants([Tenant(name="x", kv_guaranteed=0.5), Tenant(name="y", kv_guaranteed=0.25), Tenant(name="z")])
"""Of 40 blocks x owns 20 and y 10."""
arrivals = count(1)


def sequence(tenant: str = "z", priority: int = 0, blocks: int = 0, tokens: int = 20) -> Sequence:
    params = SamplingParams(max_tokens=100)
    made = Sequence(Request(id="r", prompt=tuple(range(tokens)), params=params, tenant=tenant), 0, tokens + 100, 0)
    made.tenant, made.priority, made.blocks, made.arrival = tenant, priority, list(range(blocks)), next(arrivals)
    return made


def shares(tenants: Tenants = TENANTS, *, fair: bool = False, active: str = "xyz") -> Shares:
    made = Shares(tenants, fair=fair, blocks=40, slots=12)
    made.refresh([], frozenset(active))
    return made


def admission_victims(
    shares: Shares, claimant: Sequence, running: list[Sequence], slot: bool = False
) -> list[Sequence]:
    needed = -(-(len(claimant.tokens) + 1) // SIZE)
    return shares.to_take_back(claimant, needed, running, slot=slot, blocks=not slot) + shares.of_lower_class(
        claimant, running
    )


@pytest.mark.parametrize(
    ("claimant", "victim", "allowed"),
    [
        (("z", 0), ("z", 1, 9), True),
        (("z", 1), ("z", 1, 9), False),
        (("z", 0), ("y", 1, 11), True),
        (("z", 0), ("y", 1, 10), False),  # y is within its guarantee, whatever the classes are
        (("x", 0), ("y", 1, 10), False),
        (("z", 1), ("y", 1, 11), False),  # y borrows, but z owns nothing and its class is no higher
        (("x", 1), ("y", 1, 11), True),
        (("x", 1), ("z", 0, 1), True),  # x is within its guarantee: even from a higher class
        (("x", 0), ("x", 1, 9), True),
        (("x", 1), ("x", 1, 9), False),
    ],
)
def test_for_a_waiting_sequence(claimant: tuple[str, int], victim: tuple[str, int, int], allowed: bool) -> None:
    running = sequence(*victim)
    assert (running in admission_victims(shares(), sequence(*claimant), [running])) is allowed


@pytest.mark.parametrize(
    ("held", "tokens", "allowed"), [(17, 20, True), (18, 20, False), (17, 23, True), (17, 24, False)]
)
def test_a_claimant_and_what_its_tenant_holds_must_fit_into_the_guarantee(
    held: int, tokens: int, allowed: bool
) -> None:
    running, victim = sequence("x", blocks=held), sequence("z", blocks=5)
    assert (victim in admission_victims(shares(), sequence("x", tokens=tokens), [running, victim])) is allowed


@pytest.mark.parametrize(
    ("claimant", "victim", "allowed"),
    [
        (("z", 0, 5), ("z", 0, 5), True),
        (("z", 0, 5), ("z", 1, 5), True),
        (("z", 1, 5), ("z", 0, 5), False),
        (("z", 0, 5), ("y", 0, 11), True),
        (("z", 0, 5), ("y", 0, 10), False),
        (("z", 1, 5), ("y", 0, 11), False),
        (("x", 1, 19), ("z", 0, 5), True),  # with one block more x is still within its guarantee
        (("x", 1, 20), ("z", 0, 5), False),
        (("x", 0, 19), ("y", 0, 10), False),
        (("x", 1, 5), ("x", 0, 5), False),
        (("x", 0, 5), ("x", 0, 5), True),
    ],
)
def test_for_a_running_sequence(claimant: tuple[str, int, int], victim: tuple[str, int, int], allowed: bool) -> None:
    grows, other = sequence(*claimant), sequence(*victim)
    found = shares().for_growth(grows, [grows, other])
    assert (other in found) is allowed
    assert grows in found, "itself, always"


@pytest.mark.parametrize(
    ("tenants", "active", "blocks", "slots"),
    [
        ({"a": {}, "b": {}}, "ab", {"a": 20, "b": 20}, {"a": 6, "b": 6}),
        ({"a": {}, "b": {}}, "a", {"a": 40}, {"a": 12}),
        ({"a": {"weight": 3.0}, "b": {}}, "ab", {"a": 30, "b": 10}, {"a": 9, "b": 3}),
        ({"a": {"weight": 3.0}, "b": {"kv_guaranteed": 0.5}}, "ab", {"a": 20, "b": 20}, {"a": 9, "b": 3}),
        ({"a": {}, "b": {"kv_guaranteed": 0.25}}, "ab", {"a": 20, "b": 20}, {"a": 6, "b": 6}),
        ({"a": {}, "b": {}, "c": {"kv_guaranteed": 0.6}}, "abc", {"a": 8, "b": 8, "c": 24}, {"a": 4, "b": 4, "c": 4}),
        ({"a": {"kv_max": 0.2}, "b": {}}, "ab", {"a": 8, "b": 20}, {"a": 6, "b": 6}),
        ({"a": {"weight": 99.0}, "b": {}}, "ab", {"a": 39, "b": 1}, {"a": 11, "b": 1}),
    ],
)
def test_weights_split_what_no_guarantee_takes(
    tenants: dict[str, dict[str, float]], active: str, blocks: dict[str, int], slots: dict[str, int]
) -> None:
    found = shares(Tenants([Tenant(name=name, **fields) for name, fields in tenants.items()]), fair=True, active=active)
    assert (found._block_parts, found._slot_parts) == (blocks, slots)


def test_a_waiting_sequence_takes_back_slots_beyond_the_others_part_youngest_first() -> None:
    fair = shares(Tenants([Tenant(name="a"), Tenant(name="b")]), fair=True, active="ab")
    running = [sequence("b", blocks=1) for _ in range(11)] + [sequence("a", blocks=1)]
    assert admission_victims(fair, sequence("a"), running, slot=True) == running[6:11], "b's own six are its oldest"
    assert admission_victims(fair, sequence("b"), running, slot=True) == [], "a has not borrowed"


def test_a_tenant_with_its_part_takes_nothing_back() -> None:
    fair = shares(Tenants([Tenant(name="a"), Tenant(name="b")]), fair=True, active="ab")
    running = [sequence("b", blocks=1) for _ in range(6)] + [sequence("a", blocks=1) for _ in range(6)]
    assert admission_victims(fair, sequence("a"), running, slot=True) == []
    assert admission_victims(fair, sequence("b"), running, slot=True) == []


def test_blocks_are_taken_back_as_slots_are() -> None:
    fair = shares(Tenants([Tenant(name="a"), Tenant(name="b")]), fair=True, active="ab")
    running = [sequence("b", blocks=9) for _ in range(4)] + [sequence("a", blocks=4)]
    assert admission_victims(fair, sequence("a"), running) == running[2:4], "18 of its 36 blocks are b's own"
    assert fair.for_growth(running[4], running) == running[2:]
    assert fair.for_growth(running[0], running) == running[:4], "b lends nothing and takes nothing of a"


def test_alone_a_tenant_has_everything() -> None:
    fair = shares(Tenants([Tenant(name="a"), Tenant(name="b")]), fair=True, active="a")
    running = [sequence("a", blocks=20), sequence("a", blocks=20)]
    assert admission_victims(fair, sequence("a"), running, slot=True) == []
    assert fair.for_growth(running[0], running) == running
