"""A bound that tenants share: what is kept for one, no other can take."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.core.places import Places

NAMES = ("a", "b", "c")


def test_one_tenant_alone_has_all_places() -> None:
    places = Places(10, {"a": 1.0})
    assert places.most_of("a") == 10
    assert places.have_room("a", 10, lambda _: 0, 0) and not places.have_room("a", 1, lambda _: 10, 10)


def test_what_is_kept_goes_by_weight() -> None:
    places = Places(80, {"a": 3.0, "b": 1.0})
    assert (places.most_of("a"), places.most_of("b")) == (70, 50)


@given(
    st.integers(1, 40), st.lists(st.floats(0.1, 9.0), min_size=3, max_size=3),
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(-5, 5)), max_size=60),
)  # fmt: skip
def test_no_tenant_takes_what_is_kept_for_another(
    most: int, weights: list[float], moves: list[tuple[str, int]]
) -> None:
    """Whoever comes and goes, each tenant can always fill its part, and the places are never more than there are."""
    places, held = Places(most, dict(zip(NAMES, weights, strict=True))), Counter[str]()
    kept = {name: places._kept[name] for name in NAMES}
    for name, count in moves:
        if count <= 0:
            held[name] = max(held[name] + count, 0)
        elif places.have_room(name, count, held.__getitem__, held.total()):
            held[name] += count
        assert held.total() <= most
        for other in NAMES:
            rest = kept[other] - held[other]
            assert rest <= 0 or places.have_room(other, rest, held.__getitem__, held.total())
            assert held.total() + sum(max(kept[one] - held[one], 0) for one in NAMES) <= most


@pytest.mark.parametrize("flood", [1, 3])
def test_a_flood_leaves_the_others_their_places(flood: int) -> None:
    places, held = Places(100, {"a": 1.0, "b": 1.0}), Counter[str]()
    while places.have_room("a", flood, held.__getitem__, held.total()):
        held["a"] += flood
    assert 72 < held["a"] <= places.most_of("a") == 75
    while places.have_room("b", 1, held.__getitem__, held.total()):
        held["b"] += 1
    assert held["b"] >= 25
