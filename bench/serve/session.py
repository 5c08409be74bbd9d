"""One server under load: what is sent to it, and the row of figures that comes of it."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

from bench.serve.answer import Answer
from bench.serve.client import Client, Wire
from bench.serve.generator import run_load
from bench.serve.prompts import Ids, measured_texts
from bench.serve.rate import Probe, best, find_max_rate, judge
from bench.serve.view import LiveView
from bench.shared import results_file
from jaxserve.commands.workload_flags import read_workload
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.distribution import Distribution
from jaxserve.metrics.slo import Bound, per_request
from jaxserve.metrics.summary import Summary
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.sources import OpenLoop, Source
from jaxserve.sim.workload import Workload

PROMPT_TOKENS, OUTPUT_TOKENS = "fixed:128", "fixed:64"
PROBE = " probe "
"""In the name of a row that is a step of a search."""


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


def _span(text: str, name: str) -> tuple[int, int]:
    """ "128" or "32-512"."""
    try:
        low, high = (int(part) for part in (text.split("-") if "-" in text else (text, text)))
    except ValueError:
        low, high = 1, 0
    if not 0 < low <= high:
        raise ConfigError(f"{name} = {text!r}: give a positive number or a span like 32-512")
    return low, high
