"""Load an OpenAI-compatible server and measure what its users see: `python -m bench.serve URL`.

    python -m bench.serve http://127.0.0.1:8000 --rate 4 --requests 200
    python -m bench.serve URL --trace azure_2023_conv.jsonl --requests 500 --slo "ttft_p99<0.5,tpot_p99<0.05"
    python -m bench.serve URL --arrivals closed:16,0 --prompt-tokens uniform:64,256 --output-tokens uniform:32,128
    python -m bench.serve URL --arrivals gamma:1,2 --rate 4                      bursts, four a second on average
    python -m bench.serve URL --find-max-rate --slo "ttft_p99<0.5,tpot_p99<0.05"
    python -m bench.serve URL OTHER_URL --rate 4            two servers, the same requests, side by side

Requests are said as in `jaxserve simulate` (docs/lab.md). TTFT, TPOT, ITL and goodput as in
`jaxserve/metrics/latency.py`; a request arrives when it is due, even if it is sent late. GuideLLM and AIPerf stay the
choice for large campaigns.
"""

import argparse
import asyncio
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.serve.answer import Answer
from bench.serve.client import Client, Wire
from bench.serve.generator import run_load
from bench.serve.prompts import Ids, measured_texts
from bench.serve.rate import Probe, best, find_max_rate, judge
from bench.serve.view import LiveView
from bench.shared import results_file
from jaxserve.commands.results import expect_file
from jaxserve.commands.server_url import server_url
from jaxserve.commands.tables import table
from jaxserve.commands.workload_flags import add_workload, read_workload
from jaxserve.core.errors import ConfigError, JaxserveError
from jaxserve.metrics.distribution import Distribution
from jaxserve.metrics.slo import Bound, per_request
from jaxserve.metrics.summary import Summary
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.sources import OpenLoop, Source
from jaxserve.sim.workload import Workload

COLUMNS = (
    ("server", "name"), ("rate", "rate"), ("ok", "completed"), ("refused", "refused"), ("failed", "failed"),
    ("tokens/s", "tokens_per_s"), ("req/s", "requests_per_s"), ("goodput %", "goodput"),
    *((f"{m} {p} ms", f"{m.lower()}_{p}_s") for m in ("TTFT", "TPOT", "ITL") for p in ("p50", "p99")),
)  # fmt: skip


PROMPT_TOKENS, OUTPUT_TOKENS = "fixed:128", "fixed:64"
PROBE = " probe "
"""In the name of a row that is a step of a search."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.rate is None and (given.find_max_rate or not (given.trace or given.arrivals)):
        given.rate = 1.0
    try:
        if given.find_max_rate and not given.slo:
            raise ConfigError("--find-max-rate needs --slo: the highest rate at which what holds?")
        source(requested(given), given.rate)  # before a server is asked anything
        bounds = Bound.parse_all(given.slo) if given.slo else ()
        older = results_file.read(given.against, "serve") if given.against else None
        expect_file(given.json)
        given.url = [server_url(url) for url in given.url]
        result = asyncio.run(_all_servers(given, bounds))
        print(results_file.show(result, COLUMNS))
        compared = [*(older["rows"] if older else []), *result["rows"]]
        if len([r for r in compared if PROBE not in r["name"]]) > 1:
            print("\n" + side_by_side(compared))
        for difference in results_file.differences(result, older) if older else ():
            print(f"not the same: {difference}")
        if given.json:
            results_file.write(given.json, result)
    except JaxserveError as error:
        print(f"bench.serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if any(row["completed"] == 0 for row in result["rows"]) else 0


async def _all_servers(given: argparse.Namespace, bounds: tuple[Bound, ...]) -> dict[str, Any]:
    rows: list[results_file.Row] = []
    for url in given.url:
        async with Client(url, given.api_key or os.environ.get("OPENAI_API_KEY"), given.timeout) as client:
            session = Session(given, client, bounds)
            await session.prepare()
            rows += await session.search() if given.find_max_rate else [await session.measure(given.rate)]
    return results_file.record("serve", given, rows, seeds=[given.workload_seed])


class Session:
    """One server, and the requests that it is sent."""

    def __init__(self, given: argparse.Namespace, client: Client, bounds: tuple[Bound, ...]) -> None:
        self._given, self._client, self._bounds = given, client, bounds
        self._wire = Wire(model=given.model or "")

    async def prepare(self) -> None:
        """Ask for the model's name and how it counts tokens."""
        given = self._given
        model = given.model or await self._client.model()
        self._wire = Wire(model=model, chat=given.chat, ignore_eos=given.ignore_eos, temperature=given.temperature)
        if given.ids:
            low, high = _span(given.ids, "ids")
            self._prompts: Callable[[Arrival, int], str | list[int]] = Ids(given.workload_seed, low, high)
        else:
            self._prompts = await measured_texts(self._client, self._wire, given.workload_seed)

    async def measure(self, rate: float | None, quiet: bool = False) -> results_file.Row:
        summary, answers = await self._load(rate)
        return row(self._client.url, rate, summary, answers)

    async def search(self) -> list[results_file.Row]:
        """All probes of the search for the highest rate; the last row is the answer."""
        rows: list[results_file.Row] = []

        async def probe(rate: float) -> Probe:
            summary, answers = await self._load(rate)
            found = judge(rate, summary.all, self._bounds)
            rows.append(row(f"{self._client.url}{PROBE}{len(rows) + 1}", rate, summary, answers))
            print(f"{rate:8.3g} requests/s: {'holds' if found.holds else found.why}", file=sys.stderr)
            return found

        found = best(await find_max_rate(probe, self._given.rate, self._given.tolerance, self._given.most_probes))
        if found is None:
            raise ConfigError(f"{self._client.url}: {self._given.slo} does not hold at any rate: loosen it")
        answer = next(r for r in rows if r["rate"] == found.rate)
        return [*rows, answer | {"name": self._client.url}]

    async def _load(self, rate: float | None) -> tuple[Summary, list[Answer]]:
        summary = Summary(per_request(self._bounds) if self._bounds else None)
        async with LiveView(self._client.url, self._given.requests, summary) as view:
            answers = await run_load(source(requested(self._given), rate), self._send, view.watch)
        return summary, answers

    async def _send(self, answer: Answer, now: Callable[[], float]) -> None:
        await self._client.stream(self._wire, self._prompts(answer.arrival, answer.number), answer, now)


def requested(given: argparse.Namespace) -> Workload:
    """The requests as the flags say; made-up ones are of one length, so that two servers are easily compared."""
    workload = read_workload(given)
    if workload.trace:
        return workload
    return dataclasses.replace(
        workload, prompt_tokens=workload.prompt_tokens or PROMPT_TOKENS,
        output_tokens=workload.output_tokens or OUTPUT_TOKENS,
    )  # fmt: skip


def source(workload: Workload, rate: float | None) -> Source:
    """The requests; at `rate` a second if it is given: the same pattern, faster or slower."""
    if rate is None:
        return workload.source()
    if (workload.arrivals or "").startswith("closed"):
        raise ConfigError(f"rate = {rate:g}: users who wait for their answers ({workload.arrivals}) come at no rate")
    arrivals = list(workload.list())
    seconds = arrivals[-1].at_s - arrivals[0].at_s if arrivals else 0.0
    if len(arrivals) < 2:
        return OpenLoop(arrivals)
    if seconds <= 0.0:
        raise ConfigError(f"rate = {rate:g}: the requests all come at once: give --arrivals poisson:1 beside it")
    factor = (len(arrivals) - 1) / rate / seconds
    return OpenLoop(dataclasses.replace(a, at_s=(a.at_s - arrivals[0].at_s) * factor) for a in arrivals)


def row(name: str, rate: float | None, summary: Summary, answers: Sequence[Answer]) -> results_file.Row:
    group = summary.all
    figures: results_file.Row = {
        "name": name,
        "rate": rate,
        "completed": group.completed,
        "refused": group.refused.total(),
        "failed": group.failed,
        "tokens_per_s": group.throughput,
        "requests_per_s": group.completed / group.duration_s if group.duration_s > 0 else 0.0,
        "goodput": group.goodput,
        "prompt_tokens": group.prompt_tokens,
        "output_tokens": group.output_tokens,
        "chunks_per_token": sum(a.chunks for a in answers) / max(group.output_tokens, 1),
        "sent_late_p99_s": Distribution(max(a.sent_s - a.arrival_s, 0.0) for a in answers).percentile(99),
        "errors": sorted({a.failed for a in answers if a.failed})[:5],
    }
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for percent in (50, 90, 99):
            value = group.distribution(metric).percentile(percent)
            figures[f"{metric}_p{percent}_s"] = value if value == value else None
    _warn(figures)
    return figures


def _warn(figures: results_file.Row) -> None:
    for error in figures["errors"]:
        print(f"bench.serve: {figures['name']}: {error}", file=sys.stderr)
    if figures["completed"] and figures["chunks_per_token"] < 0.99:
        share = figures["chunks_per_token"]
        print(f"bench.serve: only {share:.2f} chunks a token: ITL shows the server's chunks", file=sys.stderr)
    if figures["sent_late_p99_s"] > 0.02:
        late = 1e3 * figures["sent_late_p99_s"]
        print(
            f"bench.serve: 1% of the requests were sent {late:.0f} ms late: this machine is the limit", file=sys.stderr
        )


def side_by_side(rows: Sequence[results_file.Row]) -> str:
    """One line a figure, one column a server, and the last over the first."""
    rows = [r for r in rows if PROBE not in r["name"]]
    lines: list[list[object]] = []
    for heading, name in COLUMNS[1:]:
        values = [r[name] for r in rows]
        scale = 1e3 if heading.endswith(" ms") else 100.0 if heading.endswith("%") else 1.0
        shown = [None if v is None else float(v) * scale for v in values]
        ratio = shown[-1] / shown[0] if shown[0] and shown[-1] is not None else None
        lines.append([heading, *shown, ratio])
    return table(["", *(r["name"] for r in rows), "last / first"], lines)


def _span(text: str, name: str) -> tuple[int, int]:
    """ "128" or "32-512"."""
    try:
        low, high = (int(part) for part in (text.split("-") if "-" in text else (text, text)))
    except ValueError:
        low, high = 1, 0
    if not 0 < low <= high:
        raise ConfigError(f"{name} = {text!r}: give a positive number or a span like 32-512")
    return low, high


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="+", help="http://HOST:PORT; several: the same requests to each, in turn")
    add_workload(parser, requests=100)
    group = parser.add_argument_group("load")
    group.add_argument(
        "--rate", type=_positive, metavar="R", help="so many requests a second, in the pattern of the trace or arrivals"
    )
    group.add_argument("--ids", metavar="LOW-HIGH", help="prompts of token ids in this span, not text")
    group = parser.add_argument_group("wire")
    group.add_argument("--model", help="default: the first that the server lists")
    group.add_argument("--chat", action="store_true", help="/v1/chat/completions; default /v1/completions")
    group.add_argument("--api-key", metavar="KEY", help="default: OPENAI_API_KEY")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--no-ignore-eos", dest="ignore_eos", action="store_false", help="do not send ignore_eos")
    group.add_argument("--timeout", type=_positive, default=3600.0, metavar="S", help="of a request")
    group = parser.add_argument_group("results")
    group.add_argument("--slo", metavar="SLO", help='for goodput and --find-max-rate: "ttft_p99<0.5,tpot_p99<0.05"')
    group.add_argument("--find-max-rate", action="store_true", help="the highest rate at which --slo holds")
    group.add_argument("--tolerance", type=_positive, default=0.05, help="of that rate (default 0.05)")
    group.add_argument("--most-probes", type=_count, default=20, help="most loads of that search (default 20)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    group.add_argument("--against", type=Path, metavar="FILE", help="show the figures beside those of another run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
