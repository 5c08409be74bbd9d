"""What has room is taken, what has none is refused with the bound's name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.core.errors import InvalidParameter, QueueFull
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sched.orderings.ordering import Ordering
from jaxserve.sched.queue_bounds import QueueBounds
from jaxserve.sched.waiting import WaitingQueue


class AsTheyCome(Ordering):
    def key(self, sequence: Sequence) -> float:
        return 0.0


def sequences(count: int, tokens: int, tenant: str = "default") -> list[Sequence]:
    request = Request(id="r", prompt=(1,) * tokens, params=SamplingParams(n=count), tenant=tenant)
    return [Sequence(request, i, 100, 0) for i in range(count)]


def bounds_with(
    waiting: list[int], max_waiting: int, max_waiting_tokens: int | None, tenants: Tenants | None = None
) -> QueueBounds:
    config = SchedulerConfig(max_waiting=max_waiting, max_waiting_tokens=max_waiting_tokens)
    queue = WaitingQueue(AsTheyCome())
    for tokens in waiting:
        queue.push(sequences(1, tokens)[0])
    return QueueBounds(config, queue, tenants or Tenants())


@given(
    st.lists(st.integers(1, 9), max_size=5), st.integers(1, 6), st.none() | st.integers(1, 40),
    st.integers(1, 6), st.integers(1, 20),
)  # fmt: skip
def test_check_refuses_exactly_what_has_no_room(
    waiting: list[int], most: int, most_tokens: int | None, count: int, tokens: int
) -> None:
    bounds = bounds_with(waiting[:most], most, most_tokens)
    refused = False
    try:
        bounds.check(sequences(count, tokens))
    except (QueueFull, InvalidParameter) as error:
        refused = True
        assert isinstance(error, InvalidParameter) == (count > most), "to come back would help, or would not"
    assert refused is not bounds.have_room("default", count, count * tokens)


def test_a_prompt_over_the_bound_of_tokens_may_wait_alone() -> None:
    bounds_with([], 4, 50).check(sequences(1, 60))
    with pytest.raises(QueueFull, match=r"5 tokens wait and the bound is 50 \(max_waiting_tokens\)"):
        bounds_with([5], 4, 50).check(sequences(1, 60))


@pytest.mark.parametrize(("own", "fits"), [(0, True), (1, True), (2, False)])
def test_a_tenants_part_of_a_queue_that_others_have_filled_is_its_own(own: int, fits: bool) -> None:
    """Of eight places b's weight makes two its own; of 400 tokens 100."""
    tenants = Tenants([Tenant(name="a", weight=2.0), Tenant(name="b")])
    queue = WaitingQueue(AsTheyCome())
    bounds = QueueBounds(SchedulerConfig(max_waiting=8, max_waiting_tokens=400), queue, tenants)
    for tenant in ["a"] * 8 + ["b"] * own:
        made = sequences(1, 50, tenant)[0]
        made.tenant = tenant
        queue.push(made)
    assert bounds.have_room("b", 1, 50) is fits
    assert not bounds.have_room("a", 1, 1)
    if fits:
        bounds.check(sequences(1, 50, "b"))
        with pytest.raises(QueueFull, match="max_waiting_tokens"):
            bounds.check(sequences(1, 101, "b"))
    else:
        with pytest.raises(QueueFull, match=r"\(max_waiting\)"):
            bounds.check(sequences(1, 1, "b"))


def test_the_smaller_of_a_tenants_bound_and_all_others_names_itself() -> None:
    bounds = bounds_with([], 4, None, Tenants([Tenant(name="a", max_waiting=2), Tenant(name="b", max_waiting=9)]))
    assert bounds.most_of("a") == (2, "max_waiting of tenant 'a'")
    assert bounds.most_of("b") == bounds.most_of("default") == (4, "max_waiting")
    with pytest.raises(InvalidParameter, match=r"at most max_waiting of tenant 'a' \(2\)"):
        bounds.check(sequences(3, 1, "a"))


def test_a_tenant_of_few_concurrent_requests_has_few_completions_in_one() -> None:
    bounds = bounds_with([], 40, None, Tenants([Tenant(name="a", max_concurrent=3, max_waiting=9)]))
    assert bounds.most_of("a") == (3, "max_concurrent of tenant 'a'")
