"""`jaxserve simulate`: tables, JSON, a page without outside files, and errors that say what to do."""

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxserve.cli import main

POOL = ["--num-blocks", "400"]
CPU_TINY = Path(__file__).parents[2] / "configs" / "cost" / "cpu_tiny_3M.json"


def test_a_trace_is_simulated_and_reported(trace: Path, tmp_path: Path, capsys) -> None:
    files = {name: tmp_path / name for name in ("report.json", "report.html", "requests.jsonl")}
    status = main(
        ["simulate", "--trace", str(trace), *POOL, "--slo", "ttft<0.5,tpot<0.05", "--json", str(files["report.json"]),
         "--html", str(files["report.html"]), "--requests-out", str(files["requests.jsonl"])]
    )  # fmt: skip
    out, said = capsys.readouterr()
    assert status == 0 and "TTFT p99 ms" in out and "roofline, not measured" in out
    assert all(f"wrote {path}\n" in out + said for path in files.values())
    stored = json.loads(files["report.json"].read_text())
    assert stored["simulated"] and "roofline" in stored["cost_model"]
    assert stored["all"]["requests"]["completed"] == 60 and stored["all"]["goodput"] == 1.0
    assert stored["num_blocks"] == 400 and stored["workload"]["trace"] == str(trace)
    lines = [json.loads(line) for line in files["requests.jsonl"].read_text().splitlines()]
    assert sorted(line["request"] for line in lines) == list(range(60))
    assert max(line["ttft_s"] for line in lines) == stored["all"]["ttft_s"]["max"]
    check_page(text := files["report.html"].read_text())
    assert f"<td>trace</td><td>{trace}</td>" in text and "<td>num_blocks</td><td>400</td>" in text


def check_page(page: str) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag, attrs) -> None:
            self.found.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

    tags = Tags()
    tags.feed(page)
    assert tags.found.count("svg") == 7 and "script" not in tags.found
    assert "url(" not in page and not re.search("https?://", page)
    assert "roofline, not measured" in page and "nan" not in page.lower().replace("tenant", "")


def test_drawn_requests_on_replicas(capsys) -> None:
    arguments = ["--arrivals", "gamma:50,2", "--requests", "40", "--replicas", "2", "--router", "least-loaded"]
    assert main(["simulate", *arguments, *POOL, "--json", "-"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["all"]["requests"]["completed"] == 40 and sum(stored["engine"]["requests_by_replica"]) == 40


@pytest.mark.parametrize(("more", "said"), [(["--router=prefix"], True), (["--router=prefix", "--replicas=2"], False)])
def test_a_router_of_one_engine_has_nothing_to_decide(more: list[str], said: bool, capsys) -> None:
    assert main(["simulate", "--requests", "4", *POOL, *more]) == 0
    assert ("note: router = 'prefix' has no effect with one engine" in capsys.readouterr().err) == said


def test_users_in_a_closed_loop(capsys) -> None:
    assert main(["simulate", "--arrivals", "closed:3,1", "--requests", "12", *POOL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["max_running"] <= 3


def test_tenants_have_their_own_rows(tmp_path: Path, capsys) -> None:
    trace, tenants = tmp_path / "t.jsonl", tmp_path / "tenants.toml"
    request = {"prompt_tokens": 20, "output_tokens": 3}
    rows = [json.dumps(request | {"arrival_s": i / 10, "tenant": f"t{i % 2}"}) for i in range(10)]
    trace.write_text("\n".join(rows))
    tenants.write_text("[tenants.t1]\nttft_slo_s = 1e-6\n")
    arguments = ["simulate", "--trace", str(trace), *POOL, "--tenants", str(tenants), "--slo", "ttft<9"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"^t0 .*100\.00%", out, re.M) and re.search(r"^t1 .*0\.00%", out, re.M)
    assert re.search(r"^all .* 50\.00%", out, re.M)
    assert main([*arguments[:-2], "--json=-"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["all"]["goodput"] == 0.0 and stored["tenants"]["t0"]["goodput"] is None


def test_a_request_that_cannot_fit_is_named(tmp_path: Path, capsys) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [{"arrival_s": i, "prompt_tokens": tokens, "output_tokens": 3} for i, tokens in enumerate((20, 99_999))]
    trace.write_text("\n".join(map(json.dumps, rows)))
    assert main(["simulate", "--trace", str(trace), *POOL, "--html", str(tmp_path / "r.html")]) == 0
    out = capsys.readouterr().out
    assert "1 cannot_fit" in out and "the prompt has 99999 tokens" in out
    assert "a larger num_blocks" in out, "the setting that says how large the pool is"
    assert "the prompt has 99999 tokens" in (tmp_path / "r.html").read_text()


def test_limits_may_have_units(trace: Path, capsys) -> None:
    for slo, shown in (("ttft<500ms, tpot<50 ms", "ttft<0.5,tpot<0.05"), ("ttft<90s,itl<5s", "ttft<90,itl<5")):
        assert main(["simulate", "--trace", str(trace), *POOL, "--slo", slo]) == 0
        assert shown in capsys.readouterr().out


def test_the_objectives_of_the_settings_stand_where_no_flag_does(trace: Path, capsys) -> None:
    def goodput(*more: str) -> float | None:
        assert main(["simulate", "--trace", str(trace), *POOL, "--json", "-", *more]) == 0
        return json.loads(capsys.readouterr().out)["all"]["goodput"]

    assert goodput() is None
    assert goodput("--ttft-slo-s=1e-6") == 0.0 == goodput("--slo=ttft<1e-6")
    assert goodput("--ttft-slo-s=1e-6", "--slo=ttft<1") == 1.0 == goodput("--tpot-slo-s=1")


def test_a_csv_is_no_trace_and_the_docs_make_one_of_it(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.csv").write_text("TIMESTAMP,ContextTokens\n")
    assert main(["simulate", "--trace", str(tmp_path / "a.csv"), *POOL]) == 2
    assert capsys.readouterr().err.endswith("docs/lab.md makes them of a CSV file\n")


def test_a_pool_in_bytes(trace: Path, capsys) -> None:
    """131,072 bytes a token and 32 tokens a block: 400 blocks."""
    assert main(["simulate", "--trace", str(trace), "--kv-cache-bytes", str(400 * 32 * 131072), "--json", "-"]) == 0
    by_bytes = json.loads(capsys.readouterr().out)
    assert main(["simulate", "--trace", str(trace), *POOL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == by_bytes["engine"]


def test_step_times_are_those_that_the_configuration_begins_with(trace: Path, capsys) -> None:
    def source(*more: str) -> str:
        assert main(["simulate", "--trace", str(trace), *POOL, "--json", "-", *more]) == 0
        return json.loads(capsys.readouterr().out)["cost_model"]

    assert source(f"--cost-model={CPU_TINY}") == source("--cost=cpu_tiny_3M") != source()
    assert source(f"--cost-model={CPU_TINY}", "--cost=h200_8b_roofline") == source()


def test_a_compressed_trace_is_simulated(trace: Path, tmp_path: Path, capsys) -> None:
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(trace.read_bytes()))
    assert main(["simulate", "--trace", str(packed), *POOL, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["requests"]["completed"] == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "num_blocks = None"),
        ([*POOL, "--slo", ""], "no objective"),
        ([*POOL, "--trace", "none.jsonl"], "none.jsonl: cannot be read"),
        ([*POOL, "--cost", "none"], "cost = 'none' is not known"),
        ([*POOL, "--cost", "h200_8b_nominal", "--roofline", "x"], "cannot both be given"),
        ([*POOL, "--slo", "ttft_p99<1"], "one request has no ttft_p99"),
        ([*POOL, "--slo", "ttft<0.5,tpot<50"], "tpot<50 is 50 seconds: write 50ms, or 50s if it is meant so"),
        ([*POOL, "--replicas", "0"], "replicas = 0"),
        ([*POOL, "--arrivals", "sometimes"], "poisson:RATE"),
    ],
)
def test_what_cannot_work_is_said(arguments: list[str], words: str, capsys) -> None:
    assert main(["simulate", *arguments]) == 2
    assert words in capsys.readouterr().err
