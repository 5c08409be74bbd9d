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
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.serve.client import Client
from bench.serve.session import PROBE, Session, requested, source
from bench.shared import results_file
from jaxserve.commands.results import expect_file
from jaxserve.commands.server_url import server_url
from jaxserve.commands.tables import table
from jaxserve.commands.workload_flags import add_workload
from jaxserve.core.errors import ConfigError, JaxserveError
from jaxserve.metrics.slo import Bound

COLUMNS = (
    ("server", "name"), ("rate", "rate"), ("ok", "completed"), ("refused", "refused"), ("failed", "failed"),
    ("tokens/s", "tokens_per_s"), ("req/s", "requests_per_s"), ("goodput %", "goodput"),
    *((f"{m} {p} ms", f"{m.lower()}_{p}_s") for m in ("TTFT", "TPOT", "ITL") for p in ("p50", "p99")),
)  # fmt: skip


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
        "--rate", type=_positive, metavar="R", help="requests a second, in the pattern of the trace or arrivals"
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
