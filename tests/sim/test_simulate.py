"""One call on the virtual clock: reports worked out by hand, replicas, routers, users in a loop, memory."""

import json
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.metrics.slo import Slo
from jaxserve.sim.arrivals import Arrival, poisson
from jaxserve.sim.routers import PrefixAware, make_router
from jaxserve.sim.simulate import SimReport, simulate
from jaxserve.sim.sources import ClosedLoop

SECOND_A_TOKEN = FormulaCost(
    source="made up", overhead_s=1.0, weights_s=0.0, token_s=1.0, pair_s=0.0, context_s=0.0, row_s=0.0
)
QUICK = FormulaCost(
    source="made up", overhead_s=0.001, weights_s=0.0, token_s=1e-5, pair_s=0.0, context_s=0.0, row_s=0.0
)


def config(**settings) -> EngineConfig:
    options = {"num_blocks": 100, "enable_prefix_caching": False, "overlap": False, "block_size": 8} | settings
    return EngineConfig.from_settings(**options)


def run(arrivals, cost=SECOND_A_TOKEN, settings=None, **options) -> SimReport:
    return simulate(config(**(settings or {})), arrivals, cost, **options)


def test_three_requests_by_hand() -> None:
    """A step takes 1 s and 1 s a token.

    0-4    a: its prompt of 3, first token           b comes at 1
    4-8    a decodes; b: its prompt of 2             first token of b, second of a
    8-11   both decode                               both end
    then nothing until 20
    20-22  c: its prompt of 1, its only token
    """
    report = run([Arrival(0.0, 3, 3), Arrival(1.0, 2, 2), Arrival(20.0, 1, 1)], slo=Slo(ttft_s=5.0, tpot_s=3.4))
    everybody = report.summary.all
    assert everybody.ttft.percentiles((0, 50, 100)) == [2.0, 4.0, 7.0]
    assert everybody.tpot.percentiles((0, 100)) == [3.0, 3.5]
    assert everybody.queue.percentiles((0, 50, 100)) == [0.0, 0.0, 3.0]
    assert everybody.throughput == 6 / 22
    assert everybody.goodput == pytest.approx(1 / 3), "b's first token comes after 7 s, and a's TPOT is 3.5 s"
    assert report.steps == 4 and report.busy_s == 13.0 and report.utilization == 13 / 22
    assert report.real_tokens == 3 + 3 + 2 + 1
    assert report.cost_source == "made up" == report.to_json()["cost_model"]
    assert report.gauges.max_running == 2 and report.gauges.max_kv_usage == pytest.approx(2 / 100)


def test_padding_is_the_share_of_the_programs_that_ran_for_nothing() -> None:
    report = run([Arrival(0.0, 48, 2)], settings={"prefill_buckets": (64,), "decode_buckets": (4,), "max_num_seqs": 4})
    assert (report.real_tokens, report.padded_tokens) == (49, 64 + 4) and report.padding == pytest.approx(19 / 68)


def test_what_cannot_fit_is_reported_one_by_one() -> None:
    report = run([Arrival(0.0, 2000, 1), Arrival(0.0, 1, 1), Arrival(0.0, 3, 4000)])
    assert [number for number, _ in report.cannot_fit] == [0, 2]
    assert "2000 tokens" in report.cannot_fit[0][1] and "max_tokens" in report.cannot_fit[1][1]
    assert report.summary.all.completed == 1 and report.summary.all.refused == {"cannot_fit": 2}


def test_tenants_are_held_to_what_they_were_promised() -> None:
    tenants = Tenants([Tenant(name="chat", ttft_slo_s=3.0)])
    arrivals = [Arrival(0.0, 3, 1, "chat"), Arrival(0.0, 3, 1, "batch")]
    report = run(arrivals, slo=Slo(ttft_s=100.0), tenants=tenants)
    assert report.summary.tenants["chat"].goodput == 0.0 and report.summary.tenants["batch"].goodput == 1.0


def test_equal_seeds_are_equal_reports() -> None:
    def report() -> str:
        rng = random.Random(4)
        times = poisson(rng, 100.0)
        arrivals = [Arrival(next(times), rng.randint(1, 40), rng.randint(1, 9)) for _ in range(200)]
        return json.dumps(run(arrivals, QUICK, replicas=3, router="least-loaded").to_json())

    assert report() == report()


# --- replicas -------------------------------------------------------------------------------------------------


def test_replicas_serve_side_by_side() -> None:
    arrivals = [Arrival(0.0, 3, 1), Arrival(0.0, 3, 1)]
    assert run(arrivals).summary.all.ttft.max == 7.0, "one step of 6 tokens"
    report = run(arrivals, replicas=2)
    assert report.summary.all.ttft.max == 4.0 and report.by_replica == [1, 1]


def test_the_least_loaded_replica_is_the_one_that_is_done() -> None:
    """The first request keeps replica 0 busy until 22; the others come one after the other to replica 1."""
    arrivals = [Arrival(0.0, 1, 20), Arrival(0.5, 1, 1), Arrival(5.0, 1, 1), Arrival(10.0, 1, 1)]
    assert run(arrivals, replicas=2, router="least-loaded").by_replica == [1, 3]
    assert run(arrivals, replicas=2, router="round-robin").by_replica == [2, 2]


def test_a_router_hears_of_an_end_no_sooner_than_it_happens() -> None:
    """Both replicas hold one request when the third comes at 1: its twin ends at 2, and the router cannot know."""
    arrivals = [Arrival(0.0, 9, 1), Arrival(0.0, 1, 1), Arrival(1.0, 1, 1)]
    report = run(arrivals, replicas=2, router="least-loaded")
    assert report.by_replica == [1, 2], "by prompt tokens, since both have one request under way"
    assert report.summary.all.ttft.percentiles((0, 50, 100)) == [2.0, 3.0, 10.0]


def test_the_prefix_router_sends_a_conversation_where_it_was() -> None:
    turns = [
        Arrival(100.0 * turn + talk, 16 * (turn + 1), 1, prefix_blocks=tuple(range(talk * 10, talk * 10 + turn + 1)),
                block_tokens=16)
        for turn in range(3) for talk in range(3)
    ]  # fmt: skip
    settings = {"enable_prefix_caching": True}
    prefix = run(turns, QUICK, settings, replicas=2, router="prefix")
    robin = run(turns, QUICK, settings, replicas=2, router="round-robin")
    # each of 3 conversations finds 16 tokens in its second turn and 32 in the third
    assert prefix.summary.all.cached_tokens == 3 * (16 + 32) > robin.summary.all.cached_tokens


def test_the_prefix_router_leaves_a_replica_that_is_much_busier() -> None:
    router = PrefixAware(2, 10_000)
    chosen = [router.choose(Arrival(0.0, 16, 1, prefix_blocks=(1,), block_tokens=16)) for _ in range(12)]
    assert chosen[:9] == [0] * 9 and 1 in chosen


def test_the_prefix_router_forgets_what_the_replica_cannot_hold() -> None:
    router = PrefixAware(2, 32)
    for block in (1, 2, 3):
        router.choose(Arrival(0.0, 16, 1, prefix_blocks=(block,), block_tokens=16))
    assert [list(sent) for sent in router._sent] == [[1, 3], [2]] and router._tokens == [32, 16]
    for block in (4, 5, 6, 7):
        router.choose(Arrival(0.0, 16, 1, prefix_blocks=(block,), block_tokens=16))
    assert max(router._tokens) <= 32


def test_an_unknown_router_is_refused() -> None:
    with pytest.raises(ConfigError, match="round-robin, least-loaded, prefix"):
        make_router("random", 2, 100)


# --- sources --------------------------------------------------------------------------------------------------


def test_users_wait_for_their_answers() -> None:
    """One user, requests of 2 s, 3 s to think: sent at 0, 5, 10."""
    report = run(ClosedLoop([Arrival(0.0, 1, 1)] * 3, users=1, think_s=3.0))
    assert report.summary.all.duration_s == 12.0 and report.summary.all.ttft.max == 2.0
    two = run(ClosedLoop([Arrival(0.0, 1, 1)] * 4, users=2))
    assert two.gauges.max_running <= 2 and two.summary.all.completed == 4


def test_the_last_request_sends_off_those_who_wait_for_company() -> None:
    """Static batches of 4, three requests on two replicas: the end of the input starts them all."""
    arrivals = [Arrival(0.0, 1, 1), Arrival(1.0, 1, 1), Arrival(2.0, 1, 1)]
    settings = {"policy": "static", "max_num_seqs": 4}
    report = run(arrivals, settings=settings, replicas=2)
    assert report.summary.all.completed == 3 and report.summary.all.ttft.max == 5.0, "from 0 to 2, and 3 s"


def endless(count: int) -> Iterator[Arrival]:
    for i in range(count):
        yield Arrival(0.01 * i, 5, 2, "a" if i % 3 else "b")


@pytest.mark.slow
def test_a_long_stream_needs_no_more_memory() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        run(endless(count), QUICK, {"journal_steps": 16}, slo=Slo(ttft_s=1.0))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    few, many = peak(1_000), peak(4_000)
    # latencies are kept up to 65,536 of each kind: 8 bytes of each of 5 kinds, by tenant and of all
    assert many < few + 3_000 * 8 * 5 * 2 * 1.3 + 100_000
