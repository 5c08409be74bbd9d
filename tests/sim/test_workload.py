"""Workloads: seeded, clipped, and refused with what is accepted."""

import itertools
import statistics
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.sim.sources import ClosedLoop
from jaxserve.sim.workload import Workload


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    rows = [(0.0, 10, 1), (5.0, 20, 2), (5.0, 30, 3), (8.0, 40, 4), (20.0, 50, 5)]
    path.write_text("\n".join(f'{{"arrival_s": {a}, "prompt_tokens": {p}, "output_tokens": {o}}}' for a, p, o in rows))
    return str(path)


def test_a_trace_is_cut_and_compressed(trace: str) -> None:
    found = list(Workload(trace=trace, window="5:10", speed=2.0).list())
    assert [(a.at_s, a.prompt_tokens) for a in found] == [(0.0, 20), (0.0, 30), (1.5, 40)]
    assert len(list(Workload(trace=trace, requests=2).list())) == 2
    assert len({a.at_s for a in Workload(trace=trace, spread_stamps=True).list()}) == 5


def test_times_and_lengths_of_a_trace_can_be_replaced(trace: str) -> None:
    found = list(Workload(trace=trace, arrivals="saturation", output_tokens="fixed:7").list())
    assert {(a.at_s, a.output_tokens) for a in found} == {(0.0, 7)} and found[4].prompt_tokens == 50


def test_pairs_drawn_from_one_file_stay_together(trace: str) -> None:
    drawn = Workload(prompt_tokens=f"file:{trace}", output_tokens=f"file:{trace}", requests=50)
    pairs = {(a.prompt_tokens, a.output_tokens) for a in drawn.list()}
    assert pairs == {(10, 1), (20, 2), (30, 3), (40, 4), (50, 5)}


def test_equal_seeds_are_equal_lists() -> None:
    def drawn(seed: int) -> list[object]:
        return list(Workload(arrivals="gamma:2,3", seed=seed, requests=40).list())

    assert drawn(1) == drawn(1) != drawn(2)


def test_drawn_lengths_and_rates_are_what_was_asked() -> None:
    spec = Workload(
        arrivals="gamma:4,2", prompt_tokens="uniform:3,9", output_tokens="lognormal:3,1,2,50", requests=8000
    )
    found = list(spec.list())
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(found)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(2.0, rel=0.1)
    assert {a.prompt_tokens for a in found} == set(range(3, 10))
    assert min(a.output_tokens for a in found) == 2 and max(a.output_tokens for a in found) == 50


def test_users_are_a_source_and_no_list() -> None:
    users = Workload(arrivals="closed:4,0.5", requests=9)
    assert isinstance(users.source(), ClosedLoop)
    with pytest.raises(ConfigError, match="an open loop here"):
        list(users.list())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arrivals": "poisson"}, "give poisson:RATE"),
        ({"arrivals": "poisson:x"}, "give poisson:RATE"),
        ({"arrivals": "burst:3"}, "poisson:RATE or gamma:RATE,CV or"),
        ({"arrivals": "on-off:1,2,3"}, "on-off:RATE,SPIKE_RATE,PERIOD,FROM,TO"),
        ({"prompt_tokens": "uniform:5"}, "uniform:LOW,HIGH"),
        ({"prompt_tokens": "fixed:"}, "fixed:TOKENS"),
        ({"prompt_tokens": "uniform:1,inf"}, "uniform:LOW,HIGH"),
        ({"arrivals": "poisson:nan"}, "poisson:RATE"),
        ({"arrivals": "closed:inf,1"}, "closed:USERS,THINK_SECONDS"),
        ({"requests": 0}, "requests = 0"),
        ({"window": "1:2"}, "a trace beside it"),
        ({"speed": 2.0}, "a trace beside it"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workload(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arrivals": "poisson:0"}, "a rate above 0"),
        ({"arrivals": "on-off:1,2,10,8,3"}, "FROM <= TO"),
        ({"arrivals": "on-off:1,0,10,0,10"}, "no request would ever come"),
        ({"arrivals": "on-off:0,5,10,3,3"}, "no request would ever come"),
        ({"arrivals": "gamma:1,1e-200"}, "a CV from 0.001 on"),
        ({"prompt_tokens": "fixed:1.5"}, "whole numbers of tokens"),
        ({"output_tokens": "lognormal:4.6,0.8,8.5,512"}, "whole numbers of tokens"),
        ({"prompt_tokens": "uniform:9,5"}, "HIGH from LOW on"),
        ({"output_tokens": "lognormal:1,1,0,5"}, "LOW from 1"),
        ({"output_tokens": "file:none.jsonl"}, "none.jsonl: cannot be read"),
    ],
)
def test_numbers_out_of_range_are_refused_when_drawn(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        next(Workload(**settings).list())


@pytest.mark.parametrize(
    ("arrivals", "words"),
    [("closed:2.5,1", "a whole number of users"), ("closed:0,1", "1 or more"), ("closed:2,-5", "seconds to think")],
)
def test_users_are_whole_and_do_not_think_backwards(arrivals: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workload(arrivals=arrivals).source()


@pytest.mark.parametrize("arrivals", ["on-off:0,5,10,3,4", "on-off:5,0,10,0,9", "on-off:5,0,10,3,3"])
def test_requests_may_come_at_some_times_only(arrivals: str) -> None:
    assert len(list(Workload(arrivals=arrivals, requests=20).list())) == 20


def test_a_huge_draw_is_clipped_like_any_other() -> None:
    assert next(Workload(prompt_tokens="lognormal:1000,1,1,20").list()).prompt_tokens == 20


def test_no_request_at_all_is_an_error(trace: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for spec in (Workload(trace=str(tmp_path / "empty.jsonl")), Workload(trace=str(tmp_path / "empty.jsonl"), speed=2)):
        with pytest.raises(ConfigError, match=r"empty\.jsonl: no requests: expected JSON"):
            list(spec.list())
    with pytest.raises(ConfigError, match=r"window = '30:5' .* a stretch of .* in which requests come"):
        list(Workload(trace=trace, window="30:5").list())


def test_a_window_has_two_numbers(trace: str) -> None:
    with pytest.raises(ConfigError, match="FROM:SECONDS"):
        list(Workload(trace=trace, window="5").list())


def test_the_description_says_what_was_asked() -> None:
    assert Workload(arrivals="poisson:2", seed=3).describe() == {"arrivals": "poisson:2", "seed": 3}
    assert Workload().describe() == {}
