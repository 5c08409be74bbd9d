"""The comparisons run, simulated and real; the same requests for every variant; figures that agree with each other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.compare import buckets, chunks, command, strategies
from bench.compare.command import Comparison, main

BENCHES = [buckets.BENCH, chunks.BENCH, strategies.BENCH]
CPU_TINY = Path(__file__).parents[2] / "configs" / "cost" / "cpu_tiny_3M.json"
SMALL = [
    "--requests=12", "--set=num_blocks=80", "--set=max_num_seqs=4", "--set=max_num_batched_tokens=64",
]  # fmt: skip


def run(bench: Comparison, path: Path, *options: str) -> dict[str, Any]:
    assert main(bench, [*options, "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "bench", [pytest.param(b, id=b.name, marks=[] if b is buckets.BENCH else pytest.mark.slow) for b in BENCHES]
)
def test_a_quick_simulation(bench: Comparison, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    options = ["--simulate", "--quick", "--slo=ttft<1,tpot<0.05"]
    result = run(bench, tmp_path / "a.json", *options, "--png", str(tmp_path / "png"))
    assert result["bench"] == bench.name and "roofline" in result["cost_model"] and result["seeds"] == [1]
    assert "device" not in result["machine"] and "simulated; step times: roofline" in capsys.readouterr().out
    assert all(
        row["completed"] == 100 and row["tokens_per_s"] < row["saturated_tokens_per_s"] for row in result["rows"]
    )
    assert all(0.0 <= row["padding"] < 1.0 for row in result["rows"])
    assert len({row["rate"] for row in result["rows"]}) == 1
    assert list((tmp_path / "png").glob("*.png"))
    again = run(bench, tmp_path / "b.json", *options, "--against", str(tmp_path / "a.json"))
    assert again["rows"] == result["rows"]
    ratios = re.findall(r" (\d\S*)$", capsys.readouterr().out.partition("this / that")[2], re.M)
    assert ratios and set(ratios) == {"1"}


@pytest.mark.slow
def test_a_single_bucket_pads_most_and_a_fitted_set_least_for_its_size(tmp_path: Path) -> None:
    result = run(buckets.BENCH, tmp_path / "a.json", "--simulate", "--requests=150", "--fit=8,16", "--compile-s=2")
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["single"]["padding"] == max(row["padding"] for row in rows.values())
    assert rows["single"]["programs"] == 3 and rows["single"]["start_cold_s"] == 6.0
    assert rows["fitted-16"]["programs"] <= 16 < rows["powers4"]["programs"]
    assert rows["fitted-16"]["saturated_tokens_per_s"] > rows["single"]["saturated_tokens_per_s"]


@pytest.mark.slow
def test_chunks_bound_the_gaps(tmp_path: Path) -> None:
    result = run(chunks.BENCH, tmp_path / "a.json", "--simulate", "--requests=200", "--chunks=256,1024,whole")
    gaps = [row["itl_p99_s"] for row in result["rows"]]
    assert gaps == sorted(gaps) and gaps[0] < 0.5 * gaps[-1]


def test_a_trace_is_replayed_at_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"arrival_s": i * 0.5, "prompt_tokens": 160, "output_tokens": 40} for i in range(30)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    options = ["--simulate", "--trace", str(trace), "--own-times", "--shrink=16,8", "--strategies=continuous,chunked"]
    for row in run(strategies.BENCH, tmp_path / "a.json", *options)["rows"]:
        assert row["completed"] == 30 and row["saturated_tokens_per_s"] is None and row["rate"] is None
        assert row["tokens_per_s"] == pytest.approx(30 * 5 / 14.5, rel=0.05)


def test_the_tenants_of_the_settings_are_heeded(tmp_path: Path) -> None:
    """`b` may send one request a second and sends two, and its objective cannot be met; `a` has neither."""
    trace, tenants = tmp_path / "trace.jsonl", tmp_path / "tenants.toml"
    request = {"prompt_tokens": 160, "output_tokens": 40}
    lines = [request | {"arrival_s": i * 0.25, "tenant": "ab"[i % 2]} for i in range(40)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    tenants.write_text("[tenants.a]\nweight = 1\n[tenants.b]\nrequests_per_s = 1\nttft_slo_s = 1e-6\n")
    options = ["--simulate", f"--trace={trace}", "--own-times", "--slo=ttft<9", f"--set=tenants={tenants}"]
    for bench in BENCHES:
        for row in run(bench, tmp_path / "a.json", *options, "--quick", "--requests=40")["rows"]:
            assert 8 <= row["refused"] <= 11 and row["goodput"] == 0.5, row


def test_prompts_drawn_from_a_mixture_come_at_the_times_of_the_arrivals(tmp_path: Path) -> None:
    options = ["--simulate", "--arrivals=poisson:2", "--own-times", "--requests=40", "--chunks=512"]
    [row] = run(chunks.BENCH, tmp_path / "a.json", *options)["rows"]
    assert row["completed"] == 40 and 1.0 < row["requests_per_s"] < 3.0


@pytest.mark.parametrize(
    ("bench", "options", "words"),
    [
        (buckets.BENCH, ["--cost=cpu_tiny_3M"], "--simulate"),
        (buckets.BENCH, ["--simulate", "--own-times"], "there are none"),
        (buckets.BENCH, ["--simulate", "--arrivals=poisson:3"], "--own-times"),
        (buckets.BENCH, ["--simulate", "--trace=a.jsonl", "--speed=2"], "--own-times"),
        (buckets.BENCH, ["--simulate", "--workload-seed=3"], "--seeds"),
        (buckets.BENCH, ["--compile-s=2"], "--simulate"),
        (buckets.BENCH, ["--simulate", "--compile-s=-1"], "compile_s = -1.0 cannot work"),
        (buckets.BENCH, ["--simulate", "--long-from=-5"], "long_from = -5 cannot work"),
        (chunks.BENCH, ["--simulate", "--slo="], "no objective"),
        (strategies.BENCH, ["--simulate", "--slo="], "no objective"),
        (buckets.BENCH, ["--simulate", "--set=nothing"], "NAME=VALUE"),
        (buckets.BENCH, ["--simulate", "--set=num_blocks=1", "--quick"], "no request could be served"),
        (chunks.BENCH, ["--simulate", "--chunks=big"], "chunks = 'big'"),
        (chunks.BENCH, ["--simulate", "--chunks=512", "--budgets=128"], "less than the chunk"),
        (strategies.BENCH, ["--simulate", "--strategies=magic"], "'magic'"),
        (strategies.BENCH, ["--simulate", "--strategies=slack"], "'slack' goes by an objective: give --slo ttft<SEC"),
        (strategies.BENCH, ["--simulate", "--strategies=slack", "--slo=tpot<1"], "give --slo ttft<SECONDS"),
        (strategies.BENCH, ["--simulate", "--strategies=adaptive", "--slo=ttft<1"], "give --slo tpot<SECONDS"),
        (strategies.BENCH, ["--simulate", "--strategies=admission"], "give --slo ttft<SECONDS,tpot<SECONDS"),
        (strategies.BENCH, ["--simulate", "--quick", "--against=nowhere.json"], "cannot be read"),
    ],
)
def test_what_cannot_work_says_what_can(bench: Comparison, options: list[str], words: str, capsys) -> None:
    assert main(bench, options) == 2
    assert words in capsys.readouterr().err


def test_the_help_says_how_many_requests_there_are(capsys) -> None:
    with pytest.raises(SystemExit):
        main(chunks.BENCH, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the first N (default: 150, simulated 2000; a twentieth of that with --quick)" in text


@pytest.mark.parametrize("pair", ["4", "4,0", "4,2,1", "a,b"])
def test_a_pair_is_two_numbers(pair: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(buckets.BENCH, [f"--shrink={pair}"])
    assert "as in" in capsys.readouterr().err


def test_strategies_run_for_which_there_are_objectives(tmp_path: Path) -> None:
    options = ["--simulate", "--requests=20", "--own-times", "--arrivals=poisson:9"]
    for slo, others in (
        ("itl<9s", set()),
        ("ttft<9", {"slack"}),
        ("ttft<9,tpot<9s", {"slack", "adaptive", "admission"}),
    ):
        rows = run(strategies.BENCH, tmp_path / "a.json", *options, f"--slo={slo}")["rows"]
        assert {row["name"] for row in rows} & set(strategies.NEEDS) == others


def test_step_times_are_those_of_the_settings(tmp_path: Path) -> None:
    options = ["--simulate", "--requests=9", "--chunks=512", f"--set=cost_model={CPU_TINY}"]
    assert run(chunks.BENCH, tmp_path / "a.json", *options)["cost_model"].startswith("measured")


def test_where_results_go_is_looked_at_before_anything_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "run", lambda *given: pytest.fail("minutes for nothing"))
    (tmp_path / "file").touch()
    for option in ("--json={}/a.json", "--png={}"):
        assert main(buckets.BENCH, ["--simulate", option.format(tmp_path / "file")]) == 2
        assert "file is a file: give a folder" in capsys.readouterr().err


def test_what_it_is_to_be_compared_with_is_read_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run", lambda *given: pytest.fail("minutes for nothing"))
    assert main(buckets.BENCH, ["--simulate", "--against", str(tmp_path / "nowhere.json")]) == 2


@pytest.mark.slow
def test_the_real_engine_is_measured(tmp_path: Path, compilation_cache: str) -> None:
    """Its variants share programs, as all engines of a test process: what is seen here is that each start is timed."""
    few_programs = ["--set=max_num_seqs=2", "--set=prefill_rows=2", "--fit=4"]
    options = ["--quick", *SMALL, *few_programs, "--prompt-tokens=uniform:4,40", "--output-tokens=uniform:2,8"]
    result = run(buckets.BENCH, tmp_path / "a.json", *options)
    assert result["cost_model"] is None and result["machine"]["device"]
    for row in result["rows"]:
        assert row["completed"] == 12 and row["start_cold_s"] > 0.0 and 0.0 < row["ttft_p50_s"] <= row["ttft_p99_s"]
