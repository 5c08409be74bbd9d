"""`jaxserve tune`: the configuration that serves a workload best within an objective, found on the simulator."""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxserve.commands.plots import plot
from jaxserve.commands.results import expect_folder, write_text
from jaxserve.commands.settings_flags import WideFormatter, add_settings, read_config
from jaxserve.commands.tables import table
from jaxserve.commands.workload_flags import add_cost, add_workload, read_cost, read_workload
from jaxserve.core.config_file import to_toml
from jaxserve.core.errors import ConfigError
from jaxserve.core.progress import progress_bar
from jaxserve.core.settings import require
from jaxserve.core.tenants import Tenants
from jaxserve.metrics.slo import Bound
from jaxserve.tune.kv_splits import splits
from jaxserve.tune.search import Found, expected_trials, search
from jaxserve.tune.space import DEFAULT, Space, parse_choices
from jaxserve.tune.trial import OBJECTIVES, Problem, Trial, build, shares

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
    config = read_config(given, say_idle=False)  # what has no effect here may have one with another policy
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


# --- what is said ---------------------------------------------------------------------------------------------


def report(problem: Problem, found: Found) -> str:
    """The winner, its rivals, what each choice is worth, why the others fail."""
    best = found.best
    lines = [
        f"{found.candidates} candidates; {len(found.trials)} tried, as much as {found.evaluations:.1f} runs of all "
        f"{found.requests:,} requests. Step times: {problem.cost.source}",
        "",
        _best(problem, best),
        "",
        "the best on all requests",
        _rivals(problem, [t for t in found.trials if t.requests == found.requests][:8]),
    ]
    if found.cut_short:
        lines.insert(1, "The time was up before all was tried: --time-budget gives it more, --candidates less to do.")
    if found.worths:
        lines += ["", f"what each choice is worth: {compared(found)}, changed", _worths(found)]
    if fails := reasons(found):
        lines += ["", "why candidates fail", table(["candidates", "reason"], fails)]
    return "\n".join(lines)


def _best(problem: Problem, best: Trial) -> str:
    unit = {"goodput": "good requests/s", "throughput": "tokens/s", "cost": "tokens/s a replica"}[problem.objective]
    verdict = "holds" if best.holds else f"NOTHING HOLDS; nearest: {best.why}"
    shown = ", ".join(f"{name} {_word(value)}" for name, value in best.choice.items()) or "as configured"
    return f"best: {shown}\n      {best.objective:.4g} {unit}, {verdict}"


def _rivals(problem: Problem, trials: list[Trial]) -> str:
    names = list(trials[0].choice)
    bounds = [str(bound) for bound in problem.bounds]
    rows = [
        [*(_word(t.choice[n]) for n in names), t.programs, t.worth, t.goodput, *(t.measured.get(b) for b in bounds)]
        for t in trials
    ]
    return table([*names, "programs", "worth", "goodput", *bounds], rows)


def compared(found: Found) -> str:
    """What the worths stand beside: the winner, or the one that a neighbour of its has taken over from."""
    before = {w.name: w.chosen for w in found.worths if w.chosen != found.best.choice[w.name]}
    if not before:
        return "the winner"
    return f"the winner with {', '.join(f'{n} {_word(v)}' for n, v in before.items())}, as it was before the last step"


def _worths(found: Found) -> str:
    rows = [
        [
            w.name,
            _word(w.chosen),
            _word(w.other),
            f"{w.share:+.1%}" if w.share == w.share else None,
            w.trial.why or "holds",
        ]
        for w in found.worths
    ]
    return table(["choice", "chosen", "instead", "worth", "and then"], rows)


def reasons(found: Found) -> list[tuple[int, str]]:
    """How many candidates failed for which reason, at their last trial; measured values left out."""
    counts = Counter(t.why.partition(":")[0] if ": was " in t.why else t.why for t in found.trials if t.why)
    return [(count, f"{why} does not hold" if "<" in why else why) for why, count in counts.most_common(8)]


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


# --- what is written ------------------------------------------------------------------------------------------


def write(folder: Path, problem: Problem, found: Found) -> None:
    """config.toml, tune.json, pareto.png; tenants.toml if their shares are not those of the file that was given."""
    best = found.best
    asked = ", ".join(f"{name} {value}" for name, value in problem.workload.describe().items())
    heading = (
        f"Found by jaxserve tune for {asked or 'drawn requests'}.\n"
        f"Objective: {problem.objective}; {', '.join(map(str, problem.bounds)) or 'no bounds'}: "
        f"{'holds' if best.holds else f'DOES NOT HOLD ({best.why})'}.\nStep times: {problem.cost.source}."
    )
    if best.choice.get("replicas", 1) > 1:
        heading += f"\nFor each of {best.choice['replicas']} replicas."
    written = ["config.toml", "tune.json"]
    config = build(problem, best.choice)
    if (tenants := shares(problem, best.choice)) is not None and tenants is not problem.tenants:
        heading += f"\nkv_split {best.choice['kv_split']}: tenants.toml beside this file; it holds their keys."
        config = config.replace(tenants=str((folder / "tenants.toml").resolve()))
        write_private(folder / "tenants.toml", tenants.to_toml())
        written.append("tenants.toml")
    write_text(folder / "config.toml", to_toml(config, heading))
    stored = {
        "objective": problem.objective,
        "bounds": [str(bound) for bound in problem.bounds],
        "cost_model": problem.cost.source,
        "workload": problem.workload.describe(),
        "candidates": found.candidates,
        "evaluations": found.evaluations,
        "cut_short": found.cut_short,
        "best": dataclasses.asdict(best),
        "worths": [{"choice": w.name, "chosen": w.chosen, "other": w.other, "share": w.share} for w in found.worths],
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
    }
    write_text(folder / "tune.json", json.dumps(stored, indent=1) + "\n")
    try:
        draw(folder / "pareto.png", problem, found)
        written.append("pareto.png")
    except ConfigError as error:
        print(f"jaxserve: no plot: {error}", file=sys.stderr)
    print(f"\nwrote {', '.join(str(folder / name) for name in written)}")


def write_private(path: Path, text: str) -> None:
    """A file for its owner's eyes."""
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)  # where it existed, the opener changes nothing
        file.write(text)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: less of the first, more of the second."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def draw(path: Path, problem: Problem, found: Found) -> None:
    """Worth against what the first bound bounds, of the trials on all requests and of those that stopped earlier."""
    bound = str(problem.bounds[0]) if problem.bounds else None
    shown = [
        t for t in found.trials if t.measured.get(bound or "", 0.0) == t.measured.get(bound or "", 0.0) and t.programs
    ]

    def x(trial: Trial) -> float:
        return 1e3 * trial.measured[bound] if bound else trial.programs

    def y(trial: Trial) -> float:
        # rates of parts of a trace are not those of the whole; shares are
        return 100 * trial.goodput if problem.objective == "goodput" else trial.worth

    worth = "good requests, %" if problem.objective == "goodput" else problem.objective
    with plot(
        path, f"{problem.objective.capitalize()} against what it costs", f"step times: {problem.cost.source}"
    ) as axes:
        early = [t for t in shown if t.requests < found.requests]
        whole = [t for t in shown if t.requests == found.requests]
        axes.scatter(
            [x(t) for t in early], [y(t) for t in early], s=16, color="#bbbbbb", label="on a part of the requests"
        )
        for holds, color, label in ((True, "#2a9d5c", "all bounds hold"), (False, "#d1495b", "a bound does not hold")):
            if some := [t for t in whole if t.holds == holds]:
                axes.scatter([x(t) for t in some], [y(t) for t in some], s=55, color=color, label=label)
        line = front([(x(t), y(t)) for t in whole])
        axes.plot([p[0] for p in line], [p[1] for p in line], color="#1b6ca8", label="Pareto front", zorder=0)
        axes.scatter([x(found.best)], [y(found.best)], s=260, marker="*", color="#edae49", label="chosen", zorder=5)
        if problem.bounds:
            axes.axvline(1e3 * problem.bounds[0].limit, color="#7f8c8d", linestyle=":")
        axes.set(xlabel=f"{bound.partition('<')[0]}, ms" if bound else "programs", ylabel=worth, xscale="log")
        for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            which("{x:,g}")  # and not 2 x 10^2
        if problem.objective == "goodput":
            axes.set_ylim(top=min(axes.get_ylim()[1], 101))
        axes.legend()
