"""Flags that say which requests: a trace, or arrivals and lengths drawn from distributions; and what steps cost."""

import argparse
import dataclasses
from typing import Any

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.file import find_cost, load_cost
from jaxserve.costs.model import CostModel
from jaxserve.costs.roofline import parse_roofline
from jaxserve.sim.workload import ARRIVALS, LENGTHS, Workload

DEFAULT_COST = "h200_8b_roofline"
SLO_HELP = 'what goodput asks of each request, "ttft<0.5,tpot<50ms" (default: ttft_slo_s and tpot_slo_s, where set)'


def add_workload(
    parser: argparse.ArgumentParser,
    requests: int | None = None,
    otherwise: str = "all of the trace; without one: 1000",
) -> None:
    """The fields of `Workload`, as flags. `requests`: how many, where no flag says it; None: `otherwise` tells."""
    first = f"the first N (default: {otherwise if requests is None else requests})"
    group = parser.add_argument_group("requests")
    group.add_argument("--trace", metavar="FILE", help="JSONL: arrival_s, prompt_tokens, output_tokens; or a record")
    group.add_argument("--window", metavar="FROM:SECONDS", help="a stretch of the trace, from 0 on")
    group.add_argument("--speed", type=float, default=1.0, metavar="K", help="the trace's time, K times faster")
    group.add_argument("--spread-stamps", action="store_true", help="strew requests with one time stamp up to the next")
    group.add_argument("--requests", type=int, default=requests, metavar="N", help=first)
    group.add_argument("--arrivals", metavar="SPEC", help=f"not a trace's times: {', '.join(ARRIVALS.values())}")
    group.add_argument("--prompt-tokens", metavar="SPEC", help=f"prompt lengths: {', '.join(LENGTHS.values())}")
    group.add_argument("--output-tokens", metavar="SPEC", help="output lengths, likewise")
    group.add_argument("--workload-seed", type=int, default=0, metavar="SEED", help="of everything drawn (default 0)")


def read_workload(given: argparse.Namespace) -> Workload:
    names = [f.name for f in dataclasses.fields(Workload) if f.name != "seed"]
    values: dict[str, Any] = {name: getattr(given, name) for name in names}
    return Workload(seed=given.workload_seed, **values)


def add_cost(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("step times")
    group.add_argument(
        "--cost",
        metavar="COST",
        help=f"a calibration file, or a name in configs/cost (default: the setting cost_model, else {DEFAULT_COST})",
    )
    group.add_argument(
        "--roofline",
        metavar="SPEC",
        help="CONFIG.JSON,bandwidth=4.3e12,matmul=790e12[,name=H200 ...]",
    )


def read_cost(given: argparse.Namespace, config: EngineConfig) -> CostModel:
    """What the flags name; else what the configuration would begin to serve with."""
    if given.roofline and given.cost:
        raise ConfigError("cost and roofline cannot both be given: step times come from one of them")
    if given.roofline:
        return parse_roofline(given.roofline)
    if not given.cost and config.scheduler.cost_model:
        return load_cost(config.scheduler.cost_model)
    return find_cost(given.cost or DEFAULT_COST)
