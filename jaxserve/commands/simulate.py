"""`jaxserve simulate`: what users would see, with the scheduler that serves, on a virtual clock."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxserve.commands.results import expect_file, write_text, written
from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags, given_settings
from jaxserve.commands.simulation_page import page, terminal
from jaxserve.commands.workload_flags import SLO_HELP, add_cost, add_workload, read_cost, read_workload
from jaxserve.core.progress import progress_bar
from jaxserve.core.tenants import Tenants
from jaxserve.metrics.slo import Slo
from jaxserve.sim.drive import Served
from jaxserve.sim.lines import open_lines
from jaxserve.sim.routers import ROUTERS
from jaxserve.sim.simulate import SimReport, simulate

_EXAMPLES = """\
examples:
  jaxserve simulate --config configs/h200.toml --num-blocks 9000 --trace azure_2023_conv.jsonl \\
    --slo "ttft<0.5,tpot<0.05" --html report.html
  jaxserve simulate --num-blocks 9000 --arrivals gamma:20,2 --prompt-tokens uniform:32,2000 --requests 5000
  jaxserve simulate --num-blocks 9000 --trace mooncake_conversation.jsonl --spread-stamps --replicas 4 --router prefix

The step times are a cost model's: a calibration file of the machine, or a roofline; every output says which.
docs/lab.md tells how to read the report, and how wrong it may be.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="serve a workload on a virtual clock",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=WideFormatter,
    )
    parser.set_defaults(run=run)
    add_workload(parser)
    add_cost(parser)
    group = parser.add_argument_group("simulation")
    group.add_argument("--replicas", type=int, default=1, metavar="N", help="engines behind a router (default 1)")
    group.add_argument("--router", choices=ROUTERS, help="who gets a request (default round-robin)")
    group.add_argument("--slo", metavar="SLO", help=SLO_HELP)
    group.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON; -: print it, and no table")
    group.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")
    group.add_argument("--requests-out", type=Path, metavar="FILE", help="write what became of each request, JSONL")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    config, workload = config_from_flags(given), read_workload(given)
    cost = read_cost(given, config)
    tenants = Tenants.of(config.scheduler)
    slo = Slo.asked(given.slo, config.scheduler)
    if given.router and given.replicas == 1:
        print(f"jaxserve: note: router = {given.router!r} has no effect with one engine", file=sys.stderr)
    router = given.router or "round-robin"
    for path in (None if given.json == Path("-") else given.json, given.html, given.requests_out):
        expect_file(path)
    with _Watcher(given.requests_out, _expected(workload.trace, workload.requests)) as watcher:
        report = simulate(
            config, workload.source(), cost, replicas=given.replicas, router=router, slo=slo, tenants=tenants,
            watch=watcher.watch,
        )  # fmt: skip
    settings = {"workload": workload.describe(), "config": given.config or "", **given_settings(given)}
    stored = {"simulated": True, **settings, **report.to_json()}
    _write(given, report, stored, settings)
    return 0


def _write(given: argparse.Namespace, report: SimReport, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    if given.json == Path("-"):
        print(json.dumps(stored, indent=1))
    else:
        print(terminal(report))
        if given.json:
            write_text(given.json, json.dumps(stored, indent=1) + "\n")
            print(f"wrote {given.json}")
    if given.requests_out:
        print(f"wrote {given.requests_out}", file=sys.stderr)
    if given.html:
        title = f"jaxserve simulate: {Path(given.trace).name if given.trace else 'drawn requests'}"
        write_text(given.html, page(report, title, settings))
        print(f"wrote {given.html}", file=sys.stderr)


def _expected(trace: str | None, requests: int | None) -> int | None:
    """Requests that will come, for the progress bar: lines of the trace, or as many as were asked for."""
    if trace is None or requests is not None:
        return requests or 1000
    if not Path(trace).is_file():  # a pipe can be read once
        return None
    with open_lines(trace) as lines:
        return sum(1 for _ in lines)


class _Watcher:
    """A progress bar, and a line of JSON for each request that ends."""

    def __init__(self, path: Path | None, total: int | None) -> None:
        self._bar = progress_bar(total or 0, "simulating", "requests", show=sys.stderr.isatty())
        self._path, self._file = path, path.open("w") if path else None

    def __enter__(self) -> "_Watcher":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
        if self._path is not None and self._file is not None:
            with written(self._path):
                self._file.close()

    def watch(self, served: Served) -> None:
        self._bar.update()
        if self._path is not None and self._file is not None:
            with written(self._path):
                self._file.write(json.dumps(dict(_told(served))) + "\n")


def _told(served: Served) -> Iterator[tuple[str, Any]]:
    arrival = served.arrival
    yield from {
        "request": served.number,
        "arrival_s": arrival.at_s,
        "tenant": arrival.tenant,
        "prompt_tokens": arrival.prompt_tokens,
        "output_tokens": len(served.token_s),
        "replica": served.replica,
    }.items()
    if served.refused:
        yield from {"refused": served.refused, "why": served.why}.items()
    if served.token_s:
        yield from {
            "ttft_s": served.ttft_s,
            "tpot_s": served.tpot_s,
            "e2e_s": served.e2e_s,
            "first_scheduled_s": served.first_scheduled_s,
            "cached_tokens": served.cached_tokens,
            "preemptions": served.preemptions,
            "failed": served.failed,
        }.items()
