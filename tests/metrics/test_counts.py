"""Our histograms against prometheus_client's: the same observations, the same buckets."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Theirs

from jaxserve.metrics.catalog import SECONDS
from jaxserve.metrics.counts import Counts, Histogram


@given(st.lists(st.sampled_from([*SECONDS, 0.0, 0.0049, 0.0051, 59.9, 61.0, 1e9]) | st.floats(0, 100)))
def test_buckets_are_those_of_the_library(values: list[float]) -> None:
    ours, theirs = Histogram(SECONDS), Theirs("h", "", registry=CollectorRegistry(), buckets=SECONDS)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    samples = next(iter(theirs.collect())).samples
    assert [(s.labels["le"], s.value) for s in samples if s.name == "h_bucket"] == ours.cumulative()
    assert next(s.value for s in samples if s.name == "h_sum") == ours.total
    assert ours.count == len(values)


def test_many_at_once_are_as_many_one_by_one() -> None:
    counts = Counts({"h": SECONDS})
    counts.observe("h", 0.02, 3, ("a",))
    for _ in range(3):
        counts.observe("h", 0.02, labels=("b",))
    one, other = counts.histograms["h"][("a",)], counts.histograms["h"][("b",)]
    assert one.counts == other.counts and one.total == 0.06
