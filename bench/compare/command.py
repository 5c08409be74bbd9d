"""The command line of a comparison: every variant serves the same requests, at once and at a rate, for every seed.

    all at once     the most the engine can do: output tokens a second
    at a rate       `--load` of what the slowest variant can do (or the workload's own times): latencies

A table, a JSON file, plots, and the same beside an older file.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare.stage import Engines, Real, Simulated, Stage, Variant
from bench.shared import results_file
from jaxserve.commands.plots import expect_plots
from jaxserve.commands.results import expect_file, expect_folder
from jaxserve.commands.settings_flags import WideFormatter, whole_numbers
from jaxserve.commands.workload_flags import add_cost, add_workload, read_cost, read_workload
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError, JaxserveError
from jaxserve.core.progress import progress_bar
from jaxserve.core.settings import require
from jaxserve.metrics.slo import Slo
from jaxserve.sim.arrivals import Arrival, poisson

SIMULATED = EngineConfig.from_settings(
    max_num_seqs=256, max_num_batched_tokens=2048, block_size=64, num_blocks=12_500, prefill_rows=16,
    enable_prefix_caching=False, max_waiting=1_000_000, max_model_len=16_384,
)  # fmt: skip
"""An 8B model on an H200: 800,000 tokens of K/V beside 16 GB of weights."""
REAL = EngineConfig.from_settings(
    max_num_seqs=16, max_num_batched_tokens=256, block_size=32, num_blocks=600, prefill_rows=8,
    enable_prefix_caching=False, max_waiting=1_000_000, dtype="float32",
)  # fmt: skip
"""The embedded model on this CPU."""
LENGTHS = {
    True: {"prompt_tokens": "uniform:32,512", "output_tokens": "lognormal:4.6,0.8,8,512"},
    False: {"prompt_tokens": "uniform:8,128", "output_tokens": "lognormal:3.2,0.8,2,128"},
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A benchmark: what it compares, on which requests, what its table shows and what it draws."""

    name: str
    doc: str
    variants: Callable[[argparse.Namespace, Stage, Sequence[Arrival]], list[Variant]]
    columns: tuple[tuple[str, str], ...]
    draw: Callable[[Path, dict[str, Any]], None]
    """(folder, result)"""
    workload: dict[bool, dict[str, str]] = dataclasses.field(default_factory=lambda: LENGTHS)
    """Prompt and output lengths where no flag says otherwise, simulated (True) and real."""
    mixture: Callable[[random.Random, bool], Arrival] | None = None
    """Draws a request where lengths alone do not say it: (rng, simulated)."""
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    requests: dict[bool, int] = dataclasses.field(default_factory=lambda: {True: 2000, False: 150})


def main(bench: Comparison, arguments: Sequence[str] | None = None) -> int:
    given = _parser(bench).parse_args(arguments)
    try:
        expect_file(given.json)
        expect_folder(given.png)
        expect_plots(given.png)
        old = results_file.read(given.against, bench.name) if given.against else None
        result = run(bench, given)
        print(results_file.show(result, bench.columns))
        if old is not None:
            print("\n" + results_file.against(result, old, bench.columns))
        if given.json:
            results_file.write(given.json, result)
        if given.png:
            bench.draw(given.png, result)
            print(f"wrote plots to {given.png}")
    except JaxserveError as error:
        print(f"bench.{bench.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def run(bench: Comparison, given: argparse.Namespace) -> dict[str, Any]:
    """Every variant, every seed. Rows are medians over the seeds; `runs` holds each."""
    _check(given)
    stage = _stage(given)
    slo = None if given.slo is None else Slo.parse(given.slo)
    lists = {seed: requests(bench, given, seed) for seed in given.seeds}
    first = lists[given.seeds[0]]
    long_from = given.long_from or sorted(a.prompt_tokens for a in first)[3 * len(first) // 4]
    variants = bench.variants(given, stage, first)
    runs: dict[str, list[results_file.Row]] = {}
    passes = len(variants) * len(lists) * (1 if given.own_times else 2)
    with ExitStack() as stack, progress_bar(passes, bench.name, "runs", show=sys.stderr.isatty()) as bar:
        engines = {variant.name: stack.enter_context(stage.open(variant)) for variant in variants}
        at_once = {} if given.own_times else _at_once(engines, lists, bar)
        rate = given.load * min(f["requests_per_s"] for f in at_once.values()) if at_once else None
        for variant, (seed, arrivals) in itertools.product(variants, lists.items()):
            ready = engines[variant.name]
            seen = ready.run(arrivals if rate is None else at_rate(arrivals, rate, seed), slo, long_from)
            full = at_once.get((variant.name, seed), {}).get("tokens_per_s")
            figures = {"rate": rate, "saturated_tokens_per_s": full} | ready.figures | seen.figures()
            runs.setdefault(variant.name, []).append({"name": variant.name, "seed": seed} | variant.labels | figures)
            bar.update()
    rows = [_median(found) for found in runs.values()]
    result = results_file.record(bench.name, given, rows, seeds=given.seeds, cost_model=stage.cost_model)
    return result | {"long_from_tokens": long_from, "runs": [row for found in runs.values() for row in found]}


def _check(given: argparse.Namespace) -> None:
    """Raises ConfigError for flags that could only be ignored."""
    require(given.load > 0.0, "load", given.load, "a positive share")
    require(given.long_from is None or given.long_from > 0, "long_from", given.long_from, "a number of tokens")
    require(given.compile_s is None or given.compile_s >= 0.0, "compile_s", given.compile_s, "seconds, or 0")
    if given.own_times and not (given.trace or given.arrivals):
        raise ConfigError("own_times: there are none: give --trace or --arrivals")
    for name, said in (("arrivals", given.arrivals), ("speed", given.speed if given.speed != 1.0 else None)):
        if said and not given.own_times:
            raise ConfigError(
                f"{name} = {said!r}: requests come at --load of the slowest variant's capacity: give --own-times for "
                "the workload's own times"
            )
    require(given.workload_seed == 0, "workload_seed", given.workload_seed, "--seeds, of which rows are the medians")
    if not given.simulate and given.compile_s is not None:
        raise ConfigError("compile_s: the real engine's compilations are measured: give --simulate beside it")


def requests(bench: Comparison, given: argparse.Namespace, seed: int) -> list[Arrival]:
    """The workload of the flags, or the benchmark's own; lengths divided by `--shrink`."""
    count = given.requests or (bench.requests[given.simulate] // (20 if given.quick else 1))
    workload = dataclasses.replace(read_workload(given), requests=count, seed=seed)
    mixture = None if given.trace or given.prompt_tokens or given.output_tokens else bench.mixture
    if not given.trace:
        lengths = bench.workload[given.simulate]
        workload = dataclasses.replace(
            workload,
            prompt_tokens=workload.prompt_tokens or lengths["prompt_tokens"],
            output_tokens=workload.output_tokens or lengths["output_tokens"],
        )
    arrivals = workload.list()
    if mixture is not None:
        rng = random.Random(seed)
        arrivals = (dataclasses.replace(mixture(rng, given.simulate), at_s=a.at_s) for a in arrivals)
    by_prompt, by_output = given.shrink
    return [
        dataclasses.replace(
            a, prompt_tokens=max(a.prompt_tokens // by_prompt, 1), output_tokens=max(a.output_tokens // by_output, 1),
            prefix_blocks=a.prefix_blocks if by_prompt == 1 else (),
        )
        for a in arrivals
    ]  # fmt: skip


def _at_once(engines: dict[str, Engines], lists: dict[int, list[Arrival]], bar: Any) -> dict[tuple[str, int], Any]:
    """Figures of every variant and seed with all requests at time 0."""
    found: dict[tuple[str, int], Any] = {}
    for (name, ready), (seed, arrivals) in itertools.product(engines.items(), lists.items()):
        found[name, seed] = ready.run([dataclasses.replace(a, at_s=0.0) for a in arrivals], None, 1).figures()
        if not found[name, seed]["completed"]:
            raise ConfigError(f"{name}: no request could be served: shorten them, or give a larger pool (num_blocks)")
        bar.update()
    return found


def at_rate(arrivals: Sequence[Arrival], rate: float, seed: int) -> list[Arrival]:
    """The same requests at the times of a Poisson process."""
    times = poisson(random.Random(f"{seed} times"), rate)
    return [dataclasses.replace(a, at_s=at) for a, at in zip(arrivals, times, strict=False)]


def _median(runs: Sequence[results_file.Row]) -> results_file.Row:
    """Medians of the figures that are numbers; the rest as in the first run."""
    row: results_file.Row = {}
    for name, value in runs[0].items():
        values = [r[name] for r in runs]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        row[name] = statistics.median(values) if numbers and name != "seed" else value
    del row["seed"]
    return row


def _stage(given: argparse.Namespace) -> Stage:
    settings = dict(_setting(text) for text in given.set)
    if given.simulate:
        base = EngineConfig.from_toml(given.config) if given.config else SIMULATED
        config = base.replace(**settings)
        return Simulated(read_cost(given, config), config, given.compile_s)
    base = EngineConfig.from_toml(given.config) if given.config else REAL
    if given.cost or given.roofline:
        raise ConfigError("cost: step times of the real engine are measured: give --simulate beside it")
    return Real(base.replace(**settings), twice=not given.quick)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"set = {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _pair(text: str) -> tuple[int, int]:
    numbers = whole_numbers(text)
    if len(numbers) != 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give two numbers of at least 1, as in 4,2")
    return numbers[0], numbers[1]


def _parser(bench: Comparison) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{bench.name}", description=bench.doc, formatter_class=WideFormatter
    )
    parser.add_argument("--simulate", action="store_true", help="on the virtual clock, an 8B model on an H200")
    parser.add_argument("--quick", action="store_true", help="few requests, small programs: does it work?")
    simulated, real = bench.requests[True], bench.requests[False]
    add_workload(parser, otherwise=f"{real}, simulated {simulated}; a twentieth of that with --quick")
    add_cost(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument("--config", metavar="FILE", help="TOML file of settings that every variant begins with")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting over it; repeatable")
    group.add_argument(
        "--seeds", type=whole_numbers, default=(1,), metavar="S,S", help="rows are medians over them (1)"
    )
    group.add_argument("--load", type=float, default=0.7, help="share of the slowest variant's capacity (0.7)")
    group.add_argument("--own-times", action="store_true", help="the workload's own arrival times; nothing at once")
    group.add_argument("--shrink", type=_pair, default=(1, 1), metavar="P,O", help="divide prompts by P, outputs by O")
    group.add_argument(
        "--long-from", type=int, metavar="N", help="prompts from N tokens on are long (the upper quarter)"
    )
    group.add_argument("--slo", metavar="SLO", help='of each request, for goodput: "ttft<0.5,tpot<0.05"')
    group.add_argument("--compile-s", type=float, metavar="S", help="with --simulate: seconds to compile a program")
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions, seeds and every run")
    group.add_argument("--png", type=Path, metavar="FOLDER", help="draw plots there")
    group.add_argument("--against", type=Path, metavar="FILE", help="compare with an older JSON file")
    bench.flags(parser)
    return parser
