"""What a search found, as a folder: the configuration to serve with, all trials, and a plot of them."""

import dataclasses
import json
import sys
from pathlib import Path

from jaxserve.commands.plots import plain_ticks, plot
from jaxserve.commands.results import write_private, write_text
from jaxserve.core.config_file import to_toml
from jaxserve.core.errors import ConfigError
from jaxserve.tune.search import Found
from jaxserve.tune.trial import Problem, Trial, build, shares


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
        plain_ticks(axes.xaxis)
        if problem.objective == "goodput":
            axes.set_ylim(top=min(axes.get_ylim()[1], 101))
        axes.legend()
