"""Sets of buckets compared: programs, time to compile, padding, step time, throughput, latency.

python -m bench.buckets                                    the embedded model on this machine
python -m bench.buckets --simulate --trace azure_2023_conv.jsonl --requests 2000

single       one size of each kind
powers4      powers of 4, as the engine takes by default
powers2      powers of 2
midpoints    powers of 2 with the midpoints between them
linear       eight equal steps
fitted-K     the K programs that waste least on these requests (`jaxserve buckets`)
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.compare.command import Comparison, at_rate
from bench.compare.stage import Stage, Variant
from bench.shared.results_file import origin
from jaxserve.commands.plots import plot
from jaxserve.commands.settings_flags import whole_numbers
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.file import find_cost
from jaxserve.costs.model import CostModel
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.step_sizes import step_sizes
from jaxserve.tune.bucket_search import BucketSet
from jaxserve.tune.bucket_sets import fitted, plain_sets

COLUMNS = (
    ("set", "name"), ("programs", "programs"), ("cold start s", "start_cold_s"), ("warm start s", "start_warm_s"),
    ("padding %", "padding"), ("step ms", "step_s"), ("tokens/s at once", "saturated_tokens_per_s"),
    ("TTFT p50 ms", "ttft_p50_s"), ("TTFT p99 ms", "ttft_p99_s"),
    ("TPOT p50 ms", "tpot_p50_s"), ("TPOT p99 ms", "tpot_p99_s"),
)  # fmt: skip


def variants(given: argparse.Namespace, stage: Stage, arrivals: Sequence[Arrival]) -> list[Variant]:
    config = stage.config
    found = [
        _variant(name, buckets)
        for name, buckets in plain_sets(config).items()
        if not given.quick or name in ("single", "powers4")
    ]
    cost = find_cost(given.fit_cost or ("h200_8b_roofline" if given.simulate else "cpu_tiny_3M"))
    steps = histogram(given, config, arrivals, cost)
    for programs in [given.fit[0]] if given.quick else given.fit:
        found.append(_variant(f"fitted-{programs}", fitted(config, steps, cost, programs)))
    return found


def _variant(name: str, buckets: BucketSet) -> Variant:
    sizes = {"decode_buckets": buckets.decode, "mixed_decode_buckets": buckets.mixed_decode}
    return Variant(name, sizes | {"prefill_buckets": buckets.prefill})


def histogram(
    given: argparse.Namespace, config: EngineConfig, arrivals: Sequence[Arrival], cost: CostModel
) -> Counter[tuple[int, int]]:
    """Step sizes of the runs to come: all at once and at a rate, or at the workload's own times."""
    if given.own_times:
        return step_sizes(config, arrivals, cost).steps
    full = step_sizes(config, [replace(a, at_s=0.0) for a in arrivals], cost)
    if not full.steps:
        raise ConfigError("requests: no request could be served: shorten them, or give a larger pool (num_blocks)")
    paced = step_sizes(config, at_rate(arrivals, given.load * len(arrivals) / full.seconds, 0), cost)
    return full.steps + paced.steps


def flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("buckets")
    group.add_argument(
        "--fit", type=whole_numbers, default=(8, 16), metavar="K,K",
        help="numbers of programs to fit sets with (default 8,16)",
    )  # fmt: skip
    group.add_argument("--fit-cost", metavar="COST", help="what padding costs in the fit; a file or a name")


def draw(folder: Path, result: dict[str, Any]) -> None:
    """Step time against programs, padding of every set; latencies."""
    rows = result["rows"]
    with plot(folder / "buckets.png", "What a set of buckets costs and gives", origin(result), columns=2) as (a, b):
        for row in rows:
            a.scatter(row["programs"], 1e3 * row["step_s"], s=80)
            place = (row["programs"], 1e3 * row["step_s"])
            a.annotate(row["name"], place, xytext=(6, 5), textcoords="offset points", fontsize=11)
        a.set(xlabel="programs", ylabel="mean step, ms", xlim=(0, 1.2 * max(row["programs"] for row in rows)))
        b.barh([row["name"] for row in rows], [100 * row["padding"] for row in rows])
        b.invert_yaxis()
        b.set(xlabel="padding, % of all tokens computed", xlim=(0, 100))
    with plot(folder / "buckets_latency.png", "Latency by set of buckets", origin(result), columns=2) as (a, b):
        names = [row["name"] for row in rows]
        for axes, metric in ((a, "ttft"), (b, "tpot")):
            axes.barh(names, [1e3 * row[f"{metric}_p99_s"] for row in rows], color="#d1495b", label="p99")
            axes.barh(names, [1e3 * row[f"{metric}_p50_s"] for row in rows], label="p50")
            axes.invert_yaxis()
            axes.set(xlabel=f"{metric.upper()}, ms")
        b.legend()


BENCH = Comparison(name="buckets", doc=__doc__, variants=variants, columns=COLUMNS, draw=draw, flags=flags)
