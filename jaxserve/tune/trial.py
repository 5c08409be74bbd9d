"""One configuration on the first requests of a workload, on the simulator: what it is worth, or why it fails.

What a bucket set costs is charged: padding, since a padded step takes as long as its program; and time to compile,
since a server that compiles does not serve. With `restart_s` from one start to the next,

    worth = objective x (1 - programs x compile_s / restart_s)
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.settings import require
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel
from jaxserve.metrics.slo import Bound, per_request
from jaxserve.metrics.summary import GroupSummary
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.simulate import simulate
from jaxserve.sim.step_sizes import padded, step_sizes
from jaxserve.sim.workload import Workload
from jaxserve.tune.bucket_sets import fitted, fitted_programs, plain_sets
from jaxserve.tune.kv_splits import GIVEN, split
from jaxserve.tune.space import Choice, settings

OBJECTIVES = ("goodput", "throughput", "cost")
FIT_REQUESTS = 400
"""Fitted sets are fitted to the first so many requests; a trial on fewer to its own, or fitting would be its price."""
MOST_LOST = 0.01
"""Share of the requests that may be refused or fail."""


@dataclass(frozen=True)
class Problem:
    """What is asked. `bounds`: all must hold; the objective is maximised among those for which they do.

    goodput      requests a second that meet the bounds, each for itself
    throughput   output tokens a second
    cost         output tokens a second and replica
    """

    base: EngineConfig
    workload: Workload
    cost: CostModel
    bounds: tuple[Bound, ...]
    objective: str = "goodput"
    compile_s: float = 2.0
    restart_s: float = 3600.0
    router: str = "least-loaded"
    tenants: Tenants | None = None
    """Goodput holds each one's requests to what it was promised; what that leaves open, `bounds` say."""

    def __post_init__(self) -> None:
        require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {', '.join(OBJECTIVES)}")
        require(self.restart_s > 0.0, "restart_s", self.restart_s, "positive seconds")
        require(self.compile_s >= 0.0, "compile_s", self.compile_s, "seconds, or 0")


@dataclass(frozen=True)
class Trial:
    """What came of it. `why`: the first bound that does not hold; "" if all do."""

    choice: Choice
    requests: int
    worth: float
    objective: float
    goodput: float
    why: str
    margin: float
    """Least of limit / measured over the bounds: above 1 when all hold."""
    measured: dict[str, float]
    programs: int = 0
    padding: float = 0.0
    throughput: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.why

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The larger the better. What fails is ranked by its goodput, and by how little it fails; equals by margin."""
        return self.holds, round(self.worth if self.holds else self.goodput, 9), self.margin


class Evaluated(NamedTuple):
    """A trial and its price."""

    trial: Trial
    simulated: int
    """Requests that were simulated for it: its own, and those that its buckets were fitted to, if nobody had yet."""


def evaluated(problem: Problem, choice: Choice, requests: int) -> Evaluated:
    """`evaluate` with what it cost."""
    fits = _steps.cache_info().misses
    trial = evaluate(problem, choice, requests)
    count = len(_arrivals(problem.workload))
    fitted_to = min(FIT_REQUESTS, requests, -(-count // choice.get("replicas", 1)))
    return Evaluated(trial, min(requests, count) + fitted_to * (_steps.cache_info().misses - fits))


def evaluate(problem: Problem, choice: Choice, requests: int) -> Trial:
    """A configuration that cannot work is a trial that fails, and says why."""
    arrivals = _arrivals(problem.workload)[:requests]
    try:
        config = build(problem, choice, min(FIT_REQUESTS, requests))
        report = simulate(
            config, arrivals, padded(problem.cost), replicas=choice.get("replicas", 1), router=problem.router,
            slo=per_request(problem.bounds), tenants=shares(problem, choice),
        )  # fmt: skip
    except ConfigError as error:
        return Trial(choice, requests, 0.0, 0.0, 0.0, str(error), 0.0, {})
    group = report.summary.all
    measured = {str(bound): group.value(bound) for bound in problem.bounds}
    margins = [b.limit / measured[str(b)] if measured[str(b)] > 0 else float(b.limit > 0) for b in problem.bounds]
    programs = len(BucketTable.from_config(config.buckets, config.scheduler).all())
    objective = _objective(problem.objective, group, report.replicas)
    served = max(1.0 - programs * problem.compile_s / problem.restart_s, 0.0)
    return Trial(
        choice, requests, objective * served, objective, group.goodput or 0.0, _why(problem.bounds, group),
        min(margins, default=1.0), measured, programs, report.padding, group.throughput,
    )  # fmt: skip


def build(problem: Problem, choice: Choice, fitted_to: int = FIT_REQUESTS) -> EngineConfig:
    """The whole configuration of a choice, with its buckets. `fitted_to`: requests a replica that a set is fitted to.

    Raises:
      ConfigError: it cannot work.
    """
    config = settings(problem.base, _with_objectives(problem, choice))
    if "buckets" not in choice:
        return config
    programs = fitted_programs(choice["buckets"])
    if programs is None:
        chosen = plain_sets(config)[choice["buckets"]]
    else:
        tenants = shares(problem, choice)
        steps = _steps(config, problem.workload, problem.cost, choice.get("replicas", 1), fitted_to, tenants)
        chosen = fitted(config, steps, problem.cost, programs)
    return replace(config, buckets=chosen.config(config.buckets.prefill_rows))


def shares(problem: Problem, choice: Choice) -> Tenants | None:
    """The tenants with the choice's shares of the KV pool. Raises ConfigError for shares that cannot work."""
    text = str(choice.get("kv_split", GIVEN))
    if problem.tenants is None:
        require(text == GIVEN, "kv_split", text, "tenants beside it: a file of them (--tenants)")
        return None
    return split(problem.tenants, text)


def _with_objectives(problem: Problem, choice: Choice) -> Choice:
    """Policies that keep objectives are told those of single requests."""
    slo = per_request(problem.bounds)
    known: dict[str, Any] = {}
    if problem.base.scheduler.ttft_slo_s is None and slo.ttft_s is not None:
        known["ttft_slo_s"] = slo.ttft_s
    tpot = slo.tpot_s or slo.itl_s
    if problem.base.scheduler.tpot_slo_s is None and tpot is not None:
        known["tpot_slo_s"] = tpot
    return {**known, **choice}


def _objective(name: str, group: GroupSummary, replicas: int) -> float:
    if name == "goodput":
        return group.goodput_per_s or 0.0
    return group.throughput / (replicas if name == "cost" else 1)


def _why(bounds: Sequence[Bound], group: GroupSummary) -> str:
    lost = 1.0 - group.completed / group.offered if group.offered else 1.0
    if lost > MOST_LOST:
        return f"{lost:.1%} of the requests were refused or failed"
    broken = [bound for bound in bounds if not group.value(bound) <= bound.limit]
    return f"{broken[0]}: was {group.value(broken[0]):.4g}" if broken else ""


@functools.lru_cache(maxsize=2)
def _arrivals(workload: Workload) -> list[Arrival]:
    """Read once in each process."""
    return list(workload.list())


@functools.lru_cache(maxsize=512)
def _steps(
    config: EngineConfig,
    workload: Workload,
    cost: CostModel,
    replicas: int,
    requests: int,
    tenants: Tenants | None = None,
) -> Counter[tuple[int, int]]:
    """Step sizes of one replica's share: sets of several sizes are fitted to one histogram."""
    share = _arrivals(workload)[: requests * replicas : replicas]
    return step_sizes(config, share, cost, tenants=tenants).steps
