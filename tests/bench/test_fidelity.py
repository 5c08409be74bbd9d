"""The fidelity bench: what it adds up, and that it says when a bar is missed."""

import random
import statistics
from types import SimpleNamespace

import pytest

from bench.fidelity.__main__ import main
from bench.fidelity.prediction import BARS, Pairs, rows, said_of_drift, said_of_others, shown
from bench.fidelity.prediction import _steps as add_steps
from bench.fidelity.rounds import Lengths, Part, all_lengths, drift, other, paced, requests
from jaxserve.core.plan import Bucket
from jaxserve.costs.model import FormulaCost, StepFeatures
from jaxserve.sim.record import RecordedStep

COST = FormulaCost(source="x", overhead_s=1.0, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0, row_s=0.0)


def test_errors_are_medians_of_sizes() -> None:
    pairs = Pairs()
    for predicted, measured in ((1.1, 1.0), (0.8, 1.0), (3.0, 2.0)):
        pairs.add("ttft p50", predicted, measured)
    assert pairs.error("ttft p50") == pytest.approx(0.2), "of 10%, 20% and 50%"
    found = rows(pairs, [1.0, 0.98, 0.97])
    assert [row["name"] for row in found] == ["ttft p50", "same decisions"]
    assert found[0]["bar"] == BARS["ttft p50"] and found[1]["error"] == pytest.approx(0.02)
    text = shown(found)
    assert text.count("MISSED") == 2 and "ttft p50 ms" in text


def test_what_is_predicted_is_not_what_was_learnt() -> None:
    def mean(lengths: Lengths) -> tuple[float, float]:
        rng = random.Random(1)
        pairs = [lengths(rng) for _ in range(500)]
        return statistics.mean(p for p, _ in pairs), statistics.mean(o for _, o in pairs)

    assert mean(all_lengths)[0] > 1.5 * mean(other)[0] and mean(all_lengths)[1] > 1.5 * mean(other)[1]
    assert requests(1, 5, other, None) == requests(1, 5, other, None) != requests(2, 5, other, None)
    assert all(a.at_s == 0.0 for a in requests(1, 5, other, None))


@pytest.mark.parametrize("seed", [21, 121, 221])
def test_the_load_is_what_it_says(seed: int) -> None:
    """As drawn, these ask for between 0.85 and 1.2 times their nominal rate."""
    drawn = requests(seed, 200, other, 10.0)
    found = paced(drawn, 100.0)
    assert sum(a.output_tokens for a in found) / found[-1].at_s == pytest.approx(100.0)
    assert [a.output_tokens for a in found] == [a.output_tokens for a in drawn]
    factors = [f.at_s / d.at_s for f, d in zip(found, drawn, strict=True)]
    assert max(factors) == pytest.approx(min(factors))


def test_only_cells_that_were_not_learnt_count_as_unseen() -> None:
    def step(tokens: int) -> StepFeatures:
        return StepFeatures(tokens, tokens * tokens / 2, 1, 0, 0, Bucket(0, 64, 1, 1))

    pairs = Pairs()
    add_steps(COST, [(step(8), 1.0)], [(step(9), 99.0), (step(40), 2.0), (step(41), 2.0)], pairs)
    assert pairs.error("step, unseen cells") == pytest.approx(0.5), "1 s predicted, 2 s measured; 9 is in 8's cell"
    assert pairs.measured["busy time"] == [103.0]


def test_it_says_when_the_machine_was_not_quiet() -> None:
    assert said_of_others([0.01, 0.04]).endswith("4.0% of the processors: quiet")
    assert "NOT quiet" in said_of_others([0.01, 0.3])
    assert "does not say" in said_of_others([None, None])


def part(seconds: list[float]) -> Part:
    """A run of steps a twentieth of a second apart."""
    steps = [RecordedStep(i, i / 20, i / 20, took, Bucket(1, 0, 0, 1), 1, 1, [], 0) for i, took in enumerate(seconds)]
    return Part([], [], SimpleNamespace(steps=steps))  # type: ignore[arg-type]


def test_drift_is_of_half_seconds_and_not_of_single_steps() -> None:
    """The cost model says 1 s for each."""
    assert drift(COST, [part([0.5, 1.5] * 50)]) == (1.0, 1.0)
    low, high = drift(COST, [part([1.0] * 100), part([1.0] * 50 + [1.4] * 50)])  # type: ignore[misc]
    assert low == 1.0 and high == pytest.approx(1.4)
    assert drift(COST, [part([1.0] * 5)]) is None, "too few to say"


def test_it_says_when_the_machine_was_not_steady() -> None:
    assert said_of_drift([(0.97, 1.04), None]).endswith("0.97-1.04 times what was predicted of them: steady")
    for moved in ((0.82, 1.02), (0.98, 1.45)):
        assert "NOT steady" in said_of_drift([(0.97, 1.04), moved])
    assert "too few" in said_of_drift([None])


@pytest.mark.parametrize("option", ["repeats", "requests", "load", "tries"])
def test_nothing_to_measure_is_refused(option: str, capsys) -> None:
    assert main([f"--{option}=0"]) == 2
    assert f"{option} = 0" in capsys.readouterr().err
