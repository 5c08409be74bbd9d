"""`jaxserve tune`: the configuration that serves a workload best within an objective, found on the simulator."""

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxserve.commands.results import expect_folder
from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags
from jaxserve.commands.tune_report import report
from jaxserve.commands.tuned_folder import write
from jaxserve.commands.workload_flags import add_cost, add_workload, read_cost, read_workload
from jaxserve.core.errors import ConfigError
from jaxserve.core.progress import progress_bar
from jaxserve.core.settings import require
from jaxserve.core.tenants import Tenants
from jaxserve.metrics.slo import Bound
from jaxserve.tune.kv_splits import splits
from jaxserve.tune.search import expected_trials, search
from jaxserve.tune.space import DEFAULT, Space, parse_choices
from jaxserve.tune.trial import OBJECTIVES, Problem, shares

_EXAMPLE = """\
example:
  jaxserve tune --trace azure_2023_conv.jsonl --requests 3000 --slo "ttft_p99<0.5,tpot_p99<0.05" \\
    --config configs/h200.toml --num-blocks 12500 --cost h200_8b_roofline --out tuned
  jaxserve serve --config tuned/config.toml

Tries policies, token budgets, chunk sizes, max_num_seqs, bucket sets and the split of the KV pool: many on the first
requests, the better ones on more, the finalists on all of them. --choose NAME=VALUE,.. narrows a choice or adds one:
any setting, policy (chunked/shortest), buckets (powers2, fitted-24, ..) or replicas. With --tenants and requests of
several of them, their shares of the KV pool are searched as well: kv_split (given, shared, chat:0.5..1+batch:0..0.9).
Ctrl-C ends the search as if its time were up, and what was found so far is written.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "tune", help="find the configuration for a workload", description=__doc__, epilog=_EXAMPLE,
        formatter_class=WideFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    add_workload(parser)
    add_cost(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--slo", default="", metavar="SLO", help='what must hold: "ttft_p99<0.5,tpot_p99<0.05"')
    group.add_argument("--objective", choices=OBJECTIVES, default="goodput", help="what is maximised (goodput)")
    group.add_argument("--choose", action="append", default=[], metavar="NAME=V,V", help="values to try; repeatable")
    group.add_argument("--only-chosen", action="store_true", help="nothing but what --choose names")
    group.add_argument("--candidates", type=int, default=200, metavar="N", help="drawn from the space (200); 0: all")
    group.add_argument("--time-budget", type=float, default=600.0, metavar="S", help="seconds to search (600)")
    group.add_argument("--jobs", type=int, default=0, metavar="N", help="processes; 0: one a processor")
    group.add_argument("--search-seed", type=int, default=0, metavar="SEED")
    group.add_argument("--compile-s", type=float, default=2.0, metavar="S", help="seconds to compile a program (2)")
    group.add_argument("--restart-s", type=float, default=3600.0, metavar="S", help="from one start to the next (3600)")
    group.add_argument("--out", type=Path, default=Path("tuned"), metavar="FOLDER", help="where the results go (tuned)")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    require(given.candidates >= 0, "candidates", given.candidates, "0 or more")
    require(given.jobs >= 0, "jobs", given.jobs, "a number of processes, or 0 for one a processor")
    require(given.time_budget > 0, "time_budget", given.time_budget, "positive seconds")
    bounds = Bound.parse_all(given.slo)
    if given.objective == "goodput" and not bounds:
        raise ConfigError('objective = goodput needs --slo: what is a good request? Give "ttft_p99<0.5,tpot_p99<0.05"')
    expect_folder(given.out)
    workload = read_workload(given)
    if (workload.arrivals or "").startswith("closed"):
        raise ConfigError("arrivals: tuning takes an open loop: users who wait would slow down with the engine")
    config = config_from_flags(given, say_idle=False)  # what has no effect here may have one with another policy
    tenants = Tenants.from_toml(config.scheduler.tenants) if config.scheduler.tenants else None
    problem = Problem(
        config, workload, read_cost(given, config), bounds, given.objective, given.compile_s, given.restart_s,
        tenants=tenants,
    )  # fmt: skip
    asked = Counter(arrival.tenant for arrival in workload.list())
    choices = {} if given.only_chosen else DEFAULT
    if tenants and not given.only_chosen and (some := splits(tenants, asked)):
        choices = choices | {"kv_split": some}
    space = Space(choices | parse_choices(given.choose))
    for text in space.choices.get("kv_split", ()):
        shares(problem, {"kv_split": text})
    requests = asked.total()
    most = given.candidates or None
    count = sum(1 for _ in space.candidates(problem.base))
    count = min(count, most or count)
    total = expected_trials(count, requests)
    with progress_bar(total, "tuning", "trials", show=sys.stderr.isatty()) as bar, interruptible() as now:
        found = search(
            problem, space, requests, most=most, jobs=given.jobs or os.cpu_count() or 1, budget_s=given.time_budget,
            seed=given.search_seed, told=lambda trial: bar.update() and None, now=now,
        )  # fmt: skip
    if not found.best.programs:  # nothing could so much as start
        raise ConfigError(found.best.why)
    print(report(problem, found))
    write(given.out, problem, found)
    return 0 if found.best.holds else 1


@contextmanager
def interruptible() -> Generator[Callable[[], float]]:
    """A clock whose time is up at the first Ctrl-C: the search ends with what it knows. The second ends the program."""
    up = False

    def interrupted(number: int, frame: object) -> None:
        nonlocal up
        up = True
        signal.signal(signal.SIGINT, before)
        print("\njaxserve: ending with what is known; Ctrl-C again gives it up", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield lambda: float("inf") if up else time.monotonic()
    finally:
        signal.signal(signal.SIGINT, before)
