"""`jaxserve tune`: a configuration that the engine takes, a front, and reasons."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.commands.tune import interruptible
from jaxserve.commands.tune_report import compared
from jaxserve.commands.tuned_folder import front
from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenants
from jaxserve.tune.search import Found, Worth, search
from jaxserve.tune.space import Choice
from jaxserve.tune.trial import Evaluated, Problem, Trial, evaluated

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
    assert (out / "config.toml").read_text().startswith(f"# Found by jaxserve tune for trace {trace}.\n")
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
    heading = (tmp_path / "tuned" / "config.toml").read_text().partition("[")[0]
    assert "# Objective: goodput; ttft_p99<0.0001: DOES NOT HOLD (ttft_p99<0.0001: was " in heading


def test_the_split_between_tenants_is_chosen_and_written(trace: Path, tmp_path: Path, capsys) -> None:
    """`chat` wants its first tokens at once, and every third request, of `batch`, fills a pool of 24 blocks."""
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    for number, fields in enumerate(lines):
        fields |= {"tenant": "chat", "prompt_tokens": 20} if number % 3 else {"tenant": "batch", "output_tokens": 200}
    trace.write_text("".join(json.dumps(fields) + "\n" for fields in lines))
    tenants, out = tmp_path / "tenants.toml", tmp_path / "tuned"
    tenants.write_text('[tenants.chat]\nkeys = ["secret"]\nttft_slo_s = 0.05\n[tenants.batch]\nttft_slo_s = 60\n')
    options = ["--slo=tpot<5", f"--tenants={tenants}", "--max-num-seqs=8", "--out", str(out)]
    splits = "--choose=kv_split=given,shared,chat:0.4..1+batch:0..0.9"
    assert run(trace, splits, *options, "--num-blocks=24") == 0
    best = json.loads((out / "tune.json").read_text())["best"]
    config = EngineConfig.from_toml(out / "config.toml")
    assert best["choice"] == {"kv_split": "chat:0.4..1+batch:0..0.9"}
    assert (
        config.scheduler.tenants == str(out / "tenants.toml") and (out / "tenants.toml").stat().st_mode & 0o777 == 0o600
    )
    written = Tenants.from_toml(config.scheduler.tenants)
    assert (written["chat"].kv_guaranteed, written["batch"].kv_max) == (0.4, 0.9)
    assert next(t for t in written if "secret" in t.keys).ttft_slo_s == 0.05
    capsys.readouterr()
    assert run(trace, "--choose=kv_split=half", *options) == 2
    assert "no tenant" in capsys.readouterr().err
    assert run(trace, "--choose=kv_split=shared", "--slo=tpot<5", "--out", str(out)) == 2
    assert "--tenants" in capsys.readouterr().err


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
        (["--slo=ttft<1", "--choose=chunk_size=64,1x"], "chunk_size = '1x' cannot work: give int or none"),
        (["--slo=ttft<1", "--choose=chunk_size=64", "--choose=chunk_size=9"], "chunk_size is chosen already: give all"),
        (["--slo=ttft<1", "--jobs=-1"], "jobs = -1 cannot work: give a number of processes"),
        (["--slo=ttft<1", "--compile-s=-1"], "compile_s = -1.0 cannot work"),
        (["--slo=ttft<1", "--restart-s=0"], "restart_s = 0.0 cannot work"),
        (["--slo=ttft<1", "--choose=max_num_batched_tokens=8", "--choose=max_num_seqs=16"], "no combination"),
        (["--slo=ttft<1", "--choose=max_num_seqs=2", "--arrivals=closed:4,0"], "open loop"),
    ],
)
def test_what_cannot_work_says_what_can(trace: Path, options: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert run(trace, *options, "--out", str(tmp_path / "t")) == 2
    assert words in capsys.readouterr().err


def test_a_search_that_was_cut_short_says_so(trace: Path, tmp_path: Path, capsys) -> None:
    for budget_s, late in (("1e-9", True), ("600", False)):
        assert run(trace, *CHOICES, "--slo=ttft_p99<5", f"--time-budget={budget_s}", f"--out={tmp_path}") == 0
        assert ("The time was up before all was tried: --time-budget" in capsys.readouterr().out) == late
        assert json.loads((tmp_path / "tune.json").read_text())["cut_short"] == late


def test_the_first_interruption_ends_the_search_and_the_second_the_program(capsys) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as now:
        assert now() <= time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
        assert now() == float("inf") and "Ctrl-C again gives it up" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) == before


def test_what_was_found_before_an_interruption_is_written(trace: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    signals = iter([signal.SIGINT])

    def interrupted(problem: Problem, choice: Choice, requests: int) -> Evaluated:
        for number in signals:
            os.kill(os.getpid(), number)
        return evaluated(problem, choice, requests)

    monkeypatch.setattr("jaxserve.commands.tune.search", functools.partial(search, evaluate=interrupted))
    assert run(trace, *CHOICES, "--slo=ttft_p99<5", f"--out={tmp_path}") == 0
    assert json.loads((tmp_path / "tune.json").read_text())["cut_short"]
    assert "8 candidates; 1 tried" in capsys.readouterr().out


def test_what_cannot_even_start_is_an_error_and_no_result(trace: Path, tmp_path: Path, capsys) -> None:
    """Nothing says how large the KV pool is: no candidate can be simulated."""
    out = tmp_path / "tuned"
    options = ["--only-chosen", "--choose=max_num_seqs=2,4", "--jobs=1", "--slo=ttft<1"]
    assert main(["tune", "--trace", str(trace), *options, "--out", str(out)]) == 2
    found = capsys.readouterr()
    assert "num_blocks = None cannot work" in found.err and not found.out and not list(out.iterdir())


def test_nothing_to_choose_is_the_configuration(trace: Path, tmp_path: Path, capsys) -> None:
    assert run(trace, "--slo=ttft<9", "--out", str(tmp_path)) == 0
    assert "best: as configured\n" in capsys.readouterr().out


def test_worths_name_what_they_stand_beside() -> None:
    def trial(**choice: int) -> Trial:
        return Trial(choice, 9, 1.0, 1.0, 1.0, "", 1.0, {})

    best, other = trial(max_num_seqs=8, chunk_size=64), trial(max_num_seqs=4, chunk_size=64)
    seqs, chunk = Worth("max_num_seqs", 8, 4, other, 0.1), Worth("chunk_size", 64, 32, other, 0.1)
    assert compared(Found(best, [best], [seqs, chunk])) == "the winner"
    before = "the winner with max_num_seqs 8, as it was before the last step"
    assert compared(Found(other, [best], [seqs, chunk])) == before


def test_the_front_is_what_nothing_beats() -> None:
    assert front([(1.0, 5.0), (2.0, 4.0), (3.0, 9.0), (2.5, 6.0), (4.0, 9.0)]) == [(1.0, 5.0), (2.5, 6.0), (3.0, 9.0)]
