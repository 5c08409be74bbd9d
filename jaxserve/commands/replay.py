"""`jaxserve replay`: a recorded run again, decision by decision; or the same requests under other settings."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxserve.commands.results import expect_file, write_text
from jaxserve.commands.settings_flags import WideFormatter, add_settings, given_settings, name_idle
from jaxserve.commands.tables import table
from jaxserve.commands.workload_flags import SLO_HELP
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.file import find_cost
from jaxserve.metrics.slo import Slo
from jaxserve.sim.counterfactual import Counterfactual, counterfactual
from jaxserve.sim.record import Record
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.replay import replay

_EXAMPLES = """\
examples:
  jaxserve serve --record monday.jsonl                        writes a record while it serves
  jaxserve replay monday.jsonl                                the same decisions, with the recorded step times
  jaxserve replay monday.jsonl --chunk-size 128               what if? differences of the same requests, in pairs
  jaxserve replay monday.jsonl --policy adaptive --tpot-slo-s 0.05 --slo "ttft<0.5,tpot<0.05"

A setting given here goes over the recorded one. Exit status 1: fewer than 99% of the decisions were the same.
"""
SAME = 0.99


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "replay", help="run a record again, or ask what if", description=__doc__, epilog=_EXAMPLES,
        formatter_class=WideFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument("record", metavar="RECORD", help="what `jaxserve serve --record` wrote")
    parser.add_argument("--cost", metavar="COST", help="step times of what if; default: the record's own, fitted")
    parser.add_argument("--slo", metavar="SLO", help=SLO_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    expect_file(given.json)
    record = read_record(given.record)
    changed = given_settings(given)
    if given.config or changed:
        return _what_if(given, record, changed)
    if given.cost or given.slo:
        raise ConfigError("cost and slo are for what if: give a setting that changes, for example --chunk-size 128")
    return _again(given, record)


def _again(given: argparse.Namespace, record: Record) -> int:
    report = replay(record)
    print(f"{len(record.requests):,} requests, {report.steps:,} steps: {report.share:.2%} decided as recorded")
    if report.first_difference is not None:
        print(f"the first that differs: step {report.first_difference}\n  was    {report.was}")
        print(f"  became {report.became}")
    if given.json:
        write_text(given.json, json.dumps(dataclasses.asdict(report) | {"share": report.share}, indent=1) + "\n")
        print(f"wrote {given.json}")
    return 0 if report.share >= SAME else 1


def _what_if(given: argparse.Namespace, record: Record, changed: dict[str, Any]) -> int:
    config = EngineConfig.from_toml(given.config, **changed) if given.config else record.config.replace(**changed)
    name_idle(config, None if config.scheduler.tenants else record.tenants)
    cost = find_cost(given.cost) if given.cost else None
    found = counterfactual(record, config, cost, Slo.asked(given.slo, config.scheduler))
    print(_shown(found))
    if given.json:
        write_text(given.json, json.dumps({"settings": changed} | found.to_json(), indent=1) + "\n")
        print(f"wrote {given.json}")
    return 0


def _shown(found: Counterfactual) -> str:
    rows: list[list[object]] = []
    for name, d in found.differences.items():
        scale, unit = (100.0, "%") if name.startswith("goodput") else (1e3, "ms")
        verdict = "" if d.certain else "may be nothing"
        rows.append([name, *(scale * v for v in (d.before, d.after, d.value, d.low, d.high)), unit, verdict])
    before, after = found.before.summary.all, found.after.summary.all
    totals = [
        ["served", before.completed, after.completed],
        ["output tokens/s", before.throughput, after.throughput],
        ["preemptions", before.preemptions, after.preemptions],
        ["utilization", f"{found.before.utilization:.1%}", f"{found.after.utilization:.1%}"],
        ["padding", f"{found.before.padding:.1%}", f"{found.after.padding:.1%}"],
    ]
    if before.goodput is not None and after.goodput is not None:
        totals.insert(1, ["goodput of all", f"{before.goodput:.2%}", f"{after.goodput:.2%}"])
    check = [[name, 1e3 * real, 1e3 * made, f"{made / real - 1:+.1%}"] for name, (real, made) in found.measured.items()]
    return "\n\n".join(
        [
            f"{found.pairs:,} requests served by both; bounds at 95%",
            table(["", "as recorded", "what if", "difference", "from", "to", "", ""], rows),
            table(["", "as recorded", "what if"], totals),
            "how near the simulation of the recorded settings comes to the record:\n"
            + table(["", "recorded ms", "simulated ms", "off by"], check),
            f"step times: {found.before.cost_source}",
        ]
    )
