"""Every metric's definition, by hand."""

from dataclasses import dataclass, field

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.metrics.latency import e2e_s, gaps_s, tpot_s, ttft_s
from jaxserve.metrics.slo import Bound, Slo, per_request
from jaxserve.metrics.summary import Summary


@dataclass
class Request:
    arrival_s: float
    token_s: list[float] = field(default_factory=list)
    first_scheduled_s: float | None = None
    tenant: str = "default"
    prompt_tokens: int = 10
    cached_tokens: int = 0
    preemptions: int = 0
    refused: str = ""
    failed: str = ""


def test_one_request() -> None:
    """Comes at 1, first token at 3, then at 4 and 6."""
    times = [3.0, 4.0, 6.0]
    assert ttft_s(1.0, times) == 2.0
    assert tpot_s(times) == 1.5, "(6 - 3) / 2"
    assert gaps_s(times) == [1.0, 2.0]
    assert e2e_s(1.0, times) == 5.0
    assert tpot_s([3.0]) is None and gaps_s([3.0]) == []


THREE = [
    Request(1.0, [3.0, 4.0, 6.0], first_scheduled_s=1.5, cached_tokens=4),
    Request(2.0, [4.0], first_scheduled_s=3.0, preemptions=2),
    Request(2.5, [8.0, 9.0], first_scheduled_s=4.5, tenant="chat"),
]


def test_three_requests() -> None:
    summary = Summary(Slo(ttft_s=2.0, tpot_s=1.5))
    for request in THREE:
        summary.add(request)
    everybody = summary.all
    assert everybody.ttft.percentiles((0, 50, 100)) == [2.0, 2.0, 5.5]
    assert everybody.tpot.percentiles((0, 100)) == [1.0, 1.5] and len(everybody.tpot) == 2, "one token has no TPOT"
    assert everybody.itl.percentiles((0, 50, 100)) == [1.0, 1.0, 2.0]
    assert everybody.e2e.percentiles((0, 50, 100)) == [2.0, 5.0, 6.5]
    assert everybody.queue.percentiles((0, 50, 100)) == [0.5, 1.0, 2.0]
    assert everybody.duration_s == 8.0, "first arrival at 1, last completion at 9"
    assert everybody.throughput == 6 / 8 and everybody.to_json()["requests_per_s"] == 3 / 8
    assert everybody.goodput == pytest.approx(2 / 3) and everybody.goodput_per_s == 2 / 8, "the third comes too late"
    assert (everybody.prompt_tokens, everybody.cached_tokens, everybody.preemptions) == (30, 4, 2)
    chat = summary.tenants["chat"]
    assert (chat.offered, chat.goodput, chat.duration_s, chat.throughput) == (1, 0.0, 6.5, 2 / 6.5)


def test_refused_and_failed_requests_are_misses_and_have_no_latencies() -> None:
    summary = Summary(Slo(ttft_s=10.0))
    for request in (
        Request(0.0, [1.0, 2.0]),
        Request(0.5, refused="queue_full"),
        Request(0.6, refused="cannot_fit"),
        Request(0.7, [3.0], failed="a step failed"),
    ):
        summary.add(request)
    everybody = summary.all
    assert everybody.goodput == 0.25
    assert (everybody.offered, everybody.completed, everybody.failed) == (4, 1, 1)
    assert dict(everybody.refused) == {"queue_full": 1, "cannot_fit": 1}
    assert len(everybody.ttft) == 1
    assert everybody.output_tokens == 3 and everybody.throughput == 1.0, "tokens of a failed request were made, too"


def test_a_tenants_own_objective() -> None:
    summary = Summary(Slo(ttft_s=100.0), {"chat": Slo(ttft_s=1.0)})
    for request in THREE:
        summary.add(request)
    assert summary.tenants["chat"].goodput == 0.0 and summary.tenants["default"].goodput == 1.0
    assert summary.all.goodput == pytest.approx(2 / 3)


def test_who_was_promised_nothing_is_no_miss() -> None:
    summary = Summary(slos={"chat": Slo(ttft_s=100.0)})
    for request in THREE:
        summary.add(request)
    assert summary.tenants["chat"].goodput == 1.0 and summary.tenants["default"].goodput is None
    assert summary.all.goodput == 1.0 and summary.all.offered == 3


def test_without_an_objective_there_is_no_goodput() -> None:
    summary = Summary()
    summary.add(THREE[0])
    assert summary.all.goodput is None and summary.to_json()["all"]["slo"] is None


def test_objectives_are_read() -> None:
    assert Slo.parse("ttft<0.5, tpot<=0.05,itl<1,e2e<9") == Slo(ttft_s=0.5, tpot_s=0.05, itl_s=1.0, e2e_s=9.0)
    bounds = Bound.parse_all("ttft_p99<0.5,tpot_p99.9<5e-2,itl_mean<1,queue_p50<2")
    assert [str(b) for b in bounds] == ["ttft_p99<0.5", "tpot_p99.9<0.05", "itl_mean<1", "queue_p50<2"]
    assert per_request(bounds) == Slo(ttft_s=0.5, tpot_s=0.05, itl_s=1.0)
    assert str(Slo.parse("ttft<0.5,itl<1")) == "ttft<0.5,itl<1"


@pytest.mark.parametrize("text", ["ttft", "ttft_p99", "latency<1", "ttft<x", "ttft<-1", "ttft_p101<1", "ttft>1"])
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics: ttft, tpot, itl, e2e, queue"):
        Bound.parse_all(text)


def test_one_request_has_no_percentile() -> None:
    with pytest.raises(ConfigError, match="one request has no ttft_p99"):
        Slo.parse("ttft_p99<1")


@pytest.mark.parametrize(("text", "words"), [("", "no objective"), ("ttft<1,tpot<2,ttft<3", "ttft has two limits")])
def test_an_objective_says_something_and_nothing_twice(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Slo.parse(text)


def test_bounds_are_measured() -> None:
    summary = Summary()
    for request in THREE:
        summary.add(request)
    values = [summary.all.value(bound) for bound in Bound.parse_all("ttft_p50<1,ttft_mean<1,itl<1")]
    assert values == pytest.approx([2.0, 9.5 / 3, 2.0])


def test_the_longest_gap_counts() -> None:
    assert Slo(itl_s=2.0).met(THREE[0]) and not Slo(itl_s=1.9).met(THREE[0])
    assert not Slo(e2e_s=4.9).met(THREE[0]) and Slo(tpot_s=0.1).met(THREE[1]), "one token has no TPOT to miss"
