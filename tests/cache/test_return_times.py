"""What a prefix is worth by its age."""

from jaxserve.cache.return_times import AGES, BEGINS_S, FADES, REVALUED, Kind, ReturnTimes


def observed(returns_s: list[float], lost: int = 0, rounds: int = 1) -> ReturnTimes:
    """Prefixes that were used again after those times, and others that were not."""
    times = ReturnTimes()
    for _ in range(rounds):
        for seconds in [*returns_s, *[BEGINS_S[-1]] * lost]:
            age = max(k for k in range(AGES) if BEGINS_S[k] <= seconds)
            for k in range(age + 1):
                times.reached(Kind.NEW, k)
            if seconds < BEGINS_S[-1]:
                times.returned(Kind.NEW, age)
    for _ in range(REVALUED):
        times.missed()
    return times


def test_without_observations_the_least_recently_used_is_worth_least() -> None:
    for row in ReturnTimes().values:
        assert row == sorted(row, reverse=True) and row[0] > 100 * row[-1]


def test_regular_think_times_make_the_one_used_last_worth_least() -> None:
    values = observed([8.0, 9.0, 10.0, 11.0] * 25).values[Kind.NEW]
    until = max(k for k in range(AGES) if BEGINS_S[k] <= 8.0)
    assert values[: until + 1] == sorted(values[: until + 1])
    assert values[until + 3] < values[0], "who has not come by then is not likely to come"


def test_what_is_not_used_again_is_worth_less_than_what_is() -> None:
    seldom, often = observed([5.0], lost=9, rounds=10), observed([5.0], rounds=100)
    assert all(a < b for a, b in zip(seldom.values[Kind.NEW][:10], often.values[Kind.NEW][:10], strict=True))


def test_observations_of_a_kind_are_its_own() -> None:
    values = observed([5.0], rounds=100).values
    assert values[Kind.RETURNED] == ReturnTimes().values[Kind.RETURNED] != values[Kind.NEW]


def test_observations_fade() -> None:
    """Traffic that comes back no more is worth little, however long it came back before."""
    times = observed([5.0], rounds=1000)
    before = times.values[Kind.NEW][0]
    for _ in range(4 * FADES):
        for k in range(20):
            times.reached(Kind.NEW, k)
        times.missed()
        after = times.values[Kind.NEW][0]
    assert after < 0.1 * before
