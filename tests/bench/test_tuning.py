"""The search finds what enumeration finds, for a fifth of its price. All draws: `python -m bench.tuning`."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench import tuning
from jaxserve.tune.space import Space


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["throughput", "replicas"])
def test_it_finds_the_best_of_a_grid_for_a_fifth_of_the_price(problem: str) -> None:
    """With a third of the output tokens of the problem's own: its simulations take two thirds of the time."""
    grid = tuning.PROBLEMS[problem]
    workload = dataclasses.replace(grid.problem.workload, output_tokens="lognormal:1.7,0.7,2,40")
    grid = dataclasses.replace(grid, problem=dataclasses.replace(grid.problem, workload=workload))
    row = tuning.judge(grid, seed=0)
    assert row["near"] < 0.25  # picking blindly would not do
    assert row["worst"] >= tuning.NEAR
    assert row["price"] <= tuning.PRICE


def test_a_small_grid_is_judged_and_written(tmp_path: Path, monkeypatch, capsys) -> None:
    grid = tuning.PROBLEMS["goodput"]
    workload = dataclasses.replace(grid.problem.workload, requests=60)
    space = Space({"max_num_batched_tokens": (128, 512), "buckets": ("single", "powers4")})
    small = tuning.Grid(dataclasses.replace(grid.problem, workload=workload), space)
    monkeypatch.setitem(tuning.PROBLEMS, "goodput", small)
    path = tmp_path / "a.json"
    status = tuning.main(["--problems=goodput", "--seeds=3,4", "--searches=2", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["seed"] for row in rows] == [3, 4] and all(row["configurations"] == 4 for row in rows)
    assert all(row["worst"] <= row["found"] <= 1.0 and row["price"] >= 1.0 for row in rows)
    assert status == 1 and "in 0 of 2 draws" in capsys.readouterr().out  # so few are all tried, for more than a fifth
    assert tuning.main(["--problems=goodput", "--json", str(path / "b.json")]) == 2
    assert "a.json is a file: give a folder" in capsys.readouterr().err
    assert tuning.main(["--problems=magic"]) == 2
    assert "known: goodput" in capsys.readouterr().err
