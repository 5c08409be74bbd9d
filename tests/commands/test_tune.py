"""`jaxserve tune`: a configuration that the engine takes, a front, and reasons."""

import json
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.commands.tune import front
from jaxserve.core.config import EngineConfig

LIMITS = ["--num-blocks=500", "--no-enable-prefix-caching", "--cost=cpu_tiny_3M", "--jobs=1", "--only-chosen"]
CHOICES = [
    "--choose=policy=chunked/fcfs,chunked/shortest",
    "--choose=max_num_seqs=2,16",
    "--choose=buckets=single,fitted-6",
]


def run(trace: Path, *more: str) -> int:
    return main(["tune", "--trace", str(trace), *LIMITS, *more])


def test_it_writes_a_configuration_and_says_why(trace: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "tuned"
    assert run(trace, *CHOICES, "--slo=ttft_p99<5,tpot_p99<0.5", "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert "what each choice is worth" in text and "8 candidates" in text and "measured: 4 layers" in text
    config = EngineConfig.from_toml(out / "config.toml")
    stored = json.loads((out / "tune.json").read_text())
    assert config.scheduler.max_num_seqs == stored["best"]["choice"]["max_num_seqs"] and config.buckets.decode_buckets
    assert not stored["best"]["why"] and len(stored["trials"]) == 8
    assert stored["best"] in stored["trials"]
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_that_holds_is_said_and_is_status_1(trace: Path, tmp_path: Path, capsys) -> None:
    assert run(trace, *CHOICES, "--slo=ttft_p99<0.0001", "--out", str(tmp_path / "tuned")) == 1
    text = capsys.readouterr().out
    assert "NOTHING HOLDS" in text and "ttft_p99<0.0001 does not hold" in text


@pytest.mark.slow
def test_processes_find_the_same(trace: Path, tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        assert run(trace, *CHOICES, "--slo=ttft_p99<5", f"--jobs={jobs}", "--out", str(tmp_path / str(jobs))) == 0
        found.append(json.loads((tmp_path / str(jobs) / "tune.json").read_text())["best"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--choose=max_num_seqs=2"], "needs --slo"),
        (["--slo=ttft<1", "--choose=speed=2"], "unknown setting"),
        (["--slo=ttft<1", "--choose=nothing"], "NAME=VALUE"),
        (["--slo=ttft<1", "--choose=max_num_batched_tokens=8", "--choose=max_num_seqs=16"], "no combination"),
        (["--slo=ttft<1", "--choose=max_num_seqs=2", "--arrivals=closed:4,0"], "open loop"),
    ],
)
def test_what_cannot_work_says_what_can(trace: Path, options: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert run(trace, *options, "--out", str(tmp_path / "t")) == 2
    assert words in capsys.readouterr().err


def test_the_front_is_what_nothing_beats() -> None:
    assert front([(1.0, 5.0), (2.0, 4.0), (3.0, 9.0), (2.5, 6.0), (4.0, 9.0)]) == [(1.0, 5.0), (2.5, 6.0), (3.0, 9.0)]
