"""The bucket search finds what brute force finds, and powers of two never beat it."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.core.buckets import BucketTable
from jaxserve.core.errors import ConfigError
from jaxserve.core.sections import SchedulerConfig
from jaxserve.tune.bucket_search import BucketSet, Steps, best_sets, cost_of, powers_of_two, tokens


def weight_bound(decode_rows: int, prefill_tokens: int) -> float:
    """A cost whose axes do not add up: small programs all cost the same, as where reading the weights is the floor."""
    return 1.0 + max(6.0, decode_rows + prefill_tokens)


def subsets(limit: int, most: int) -> list[tuple[int, ...]]:
    """Every growing tuple of sizes that ends at the limit."""
    return [(*c, limit) for m in range(most) for c in itertools.combinations(range(1, limit), m)]


def brute_force(steps: Steps, programs: int, rows: int, prefill: int, cost) -> float:
    best = float("inf")
    for m in subsets(rows, 3):
        for p in subsets(prefill, programs):
            for d in subsets(rows, programs):
                candidate = BucketSet(d, p, m)
                if candidate.programs <= programs:
                    best = min(best, cost_of(candidate, steps, cost))
    return best


histograms = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 5)).filter(lambda step: step != (0, 0)), st.integers(1, 9), min_size=1
)


@given(histograms, st.integers(3, 7), st.sampled_from([tokens, weight_bound]))
def test_it_equals_brute_force(steps: Steps, programs: int, cost) -> None:
    found = best_sets(steps, programs, max_decode=4, max_prefill=5, cost=cost)
    assert found[-1].programs <= programs
    assert found[-1].cost == pytest.approx(cost_of(found[-1], steps, cost))
    assert found[-1].cost == pytest.approx(brute_force(steps, programs, 4, 5, cost))


def workload() -> Steps:
    rng = random.Random(3)
    steps: dict[tuple[int, int], int] = {}
    for _ in range(2000):
        step = rng.randint(1, 64), rng.choice([0, 0, 0, rng.randint(1, 512), 512])
        steps[step] = steps.get(step, 0) + 1
    return steps


def test_more_programs_cost_less_and_powers_of_two_cost_more() -> None:
    steps = workload()
    found = best_sets(steps, 16, max_decode=64, max_prefill=512, prefill_multiple=8)
    costs = [buckets.cost for buckets in found]
    assert costs == sorted(costs, reverse=True) and len({buckets.programs for buckets in found}) == len(found) > 8
    for programs in (4, 8, 16):
        ours = [buckets for buckets in found if buckets.programs <= programs][-1]
        powers = powers_of_two(steps, programs, max_decode=64, max_prefill=512)
        assert powers.programs <= programs and ours.cost < powers.cost


def test_sizes_are_multiples_and_the_engine_takes_them() -> None:
    buckets = best_sets(workload(), 12, max_decode=64, max_prefill=520, decode_multiple=8, prefill_multiple=64)[-1]
    assert all(size % 8 == 0 for size in (*buckets.decode, *buckets.mixed_decode))
    assert all(size % 64 == 0 for size in buckets.prefill[:-1]) and buckets.prefill[-1] == 520
    limits = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=520)
    table = BucketTable.from_config(buckets.config(prefill_rows=4), limits)
    assert len(table.all()) == buckets.programs
    assert all(table.fit(d, p)[:2] == buckets.pad(d, p) for d, p in workload())


def test_a_limit_that_no_step_reached_is_there() -> None:
    buckets = best_sets({(3, 0): 5}, 8, max_decode=32, max_prefill=128)[-1]
    assert (buckets.decode, buckets.prefill, buckets.mixed_decode) == ((3, 32), (128,), (32,))


def test_too_few_programs_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        best_sets({(1, 0): 1}, 2, max_decode=4, max_prefill=8)
