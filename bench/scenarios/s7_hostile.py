"""S7: a tenant beside a hostile one.

Tenant `a` sends small requests, at a third of what its half of the machine can serve. Tenant `b`, of equal weight,
sends more than the machine can serve: in one run as an ordinary tenant does (`good`), in the others with one attack
each. The time that `a` waits for its first tokens beside an attack is compared with the time beside the ordinary
neighbour.

    short         a flood of requests of a few tokens: it fills the waiting queue
    prompts       prompts of up to a quarter of the KV pool: they fill every step
    outputs       outputs so long that they hold every slot and every KV block
    n             requests for 128 completions, the most that a body may ask for
    fields        the requests of `good`, each with the highest or the lowest priority, and with the tightest or the
                  loosest objectives, that can be written; admission looks at objectives
    thrash        long prefixes that come again just after the prefix cache has evicted them, every other one salted
    aborts        streams that the caller closes at the first token, or some milliseconds after it sent the request

`fields` also runs under the orderings `priority` and `slack`, where a request's own fields count most: there `b` is of
a lower class and was promised nothing, and the fields must gain it nothing.

`none` is `a` alone. The steps beside `good` are about as full as beside the attacks, since its prompts are five times
as long as its outputs (Azure's conversations have this ratio): the bars are about waiting, not about the length of one
step, which `max_num_batched_tokens` bounds. `a` stands for eight applications, each with a prefix of its own, so that
it has cached blocks to lose.

There is no long text here, since the requests are made of tokens. That others are served while a long text is
tokenized is proved by `tests/server/test_long_texts.py`.
"""

import math
import random
from dataclasses import dataclass, replace
from itertools import takewhile

from bench.scenarios import measure as m
from bench.scenarios.bars import Bar, each_most, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Settings, Stage
from jaxserve.core.sampling import MAX_N
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sim.arrivals import Arrival, lognormal, poisson, uniform
from jaxserve.sim.drive import Served

NAME = "S7"
SEEDS = (71, 72, 73)
BAR = 1.5
GOOD, ALONE = "good", "none"
P99 = "a TTFT P99 (s)"
ATTACKS = ("short", "prompts", "outputs", "n", "fields", "thrash", "aborts")
BY_FIELDS = ("priority", "slack")
"""Orderings that look at a request's own fields."""
RUNS = {ordering: (ALONE, GOOD, *ATTACKS) for ordering in ("fcfs", "fair")} | dict.fromkeys(BY_FIELDS, (GOOD, "fields"))
"""By ordering: the neighbours beside which `a` is served."""
SLO_S = 1.0
"""What `a` was promised for its first tokens: `slack` looks at it, and admission in `fields`."""
EQUAL = Tenants([Tenant(name="a", ttft_slo_s=SLO_S), Tenant(name="b")])
CLASSES = Tenants([Tenant(name="a", ttft_slo_s=SLO_S), Tenant(name="b", priority=1)])
APPLICATIONS = 8
TIGHTEST_S, LOOSEST_S = 1e-6, 1e6
SIGMA = 0.6
"""How widely the lengths of ordinary requests scatter."""
HIGHEST, LOWEST = -(2**31), 2**31 - 1
"""Priorities: smaller goes first."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Requests a second of tenant `b`, their prompt tokens and their output tokens."""

    rate: float
    prompt: int
    output: int


class Plan:
    """Sizes of the scenario on a stage."""

    def __init__(self, real: bool, seconds: float | None = None) -> None:
        self.real = real
        self.b_from_s, self.seconds = 2.0, seconds or (12.0 if real else 20.0)
        self.until_s = self.seconds + (3.0 if real else 5.0)
        """When a run is stopped: `a`'s requests without a first token by then count with all that time."""
        self.rate = 20.0
        self.block = 32 if real else 16
        self.prefix_blocks = 2 if real else 8
        self.own, self.output = ((8, 32), (8, 24)) if real else ((16, 64), (20, 60))
        self.common: Settings = {
            "block_size": self.block, "num_blocks": 160 + real if real else 2048, "enable_prefix_caching": True,
            "max_num_seqs": 16 if real else 32, "max_num_batched_tokens": 64 if real else 256, "max_waiting": 4096,
        }  # fmt: skip
        if real:
            self.common |= {"decode_buckets": (1, 4, 16), "mixed_decode_buckets": (16,), "prefill_buckets": (16, 64)}
        good = Shape(250.0, 80, 16) if real else Shape(100.0, 330, 60)
        self.shapes = {
            GOOD: good,
            "short": Shape(1500.0, 10, 4) if real else Shape(2000.0, 10, 4),
            "prompts": Shape(60.0, 480, 8) if real else Shape(8.0, 8000, 20),
            "outputs": Shape(20.0, 20, 450) if real else Shape(10.0, 50, 1500),
            "n": Shape(4.0, 20, 20) if real else Shape(2.0, 60, 40),
            "fields": good,
            "thrash": Shape(60.0, 448, 1) if real else Shape(25.0, 2000, 1),
            "aborts": Shape(300.0, 80, 200) if real else Shape(300.0, 330, 200),
        }
        cached = int(self.common["num_blocks"]) * self.block
        self.cycle = round(1.2 * cached / self.shapes["thrash"].prompt)
        """Prefixes of `thrash`: a fifth more than the pool holds, so that each is evicted before it comes again."""
        self.closes_s = 0.01 if real else 0.05

    def tenant_a(self, seed: int) -> list[Arrival]:
        rng, found = random.Random(seed), list[Arrival]()
        for at in self._times(rng, self.rate, 0.0):
            application = uniform(rng, 1, APPLICATIONS)
            prompt = self.prefix_blocks * self.block + uniform(rng, *self.own)
            prefix = tuple(application * 1000 + i for i in range(self.prefix_blocks))
            found.append(
                Arrival(at, prompt, uniform(rng, *self.output), "a", prefix_blocks=prefix, block_tokens=self.block)
            )
        return found

    def tenant_b(self, neighbour: str, seed: int) -> list[Arrival]:
        """What `b` sends in the run of this name; nothing in `none`."""
        if neighbour == ALONE:
            return []
        shape, rng = self.shapes[neighbour], random.Random(1000 + seed)
        ordinary, found = shape is self.shapes[GOOD], list[Arrival]()
        for number, at in enumerate(self._times(rng, shape.rate, self.b_from_s)):
            prompt, output = (_around(rng, mean) if ordinary else mean for mean in (shape.prompt, shape.output))
            found.append(self._attack(neighbour, number, Arrival(at, prompt, output, "b", neighbour)))
        return found

    def both(self, neighbour: str, seed: int) -> list[Arrival]:
        return sorted([*self.tenant_a(seed), *self.tenant_b(neighbour, seed)], key=lambda arrival: arrival.at_s)

    def _times(self, rng: random.Random, rate: float, from_s: float) -> list[float]:
        return list(takewhile(lambda at: at < self.seconds, poisson(rng, rate, from_s)))

    def _attack(self, neighbour: str, number: int, arrival: Arrival) -> Arrival:
        every_other = number % 2 == 0
        match neighbour:
            case "n":
                return replace(arrival, n=MAX_N)
            case "fields":
                objective_s = TIGHTEST_S if number % 4 < 2 else LOOSEST_S
                priority = HIGHEST if every_other else LOWEST
                return replace(arrival, priority=priority, ttft_slo_s=objective_s, tpot_slo_s=objective_s)
            case "thrash":
                blocks = arrival.prompt_tokens // self.block
                first = 100_000 + number % self.cycle * blocks
                salt = f"{number}" if every_other else ""
                prefix = tuple(range(first, first + blocks))
                return replace(arrival, prefix_blocks=prefix, block_tokens=self.block, cache_salt=salt)
            case "aborts":
                return replace(arrival, abort_tokens=1) if every_other else replace(arrival, abort_s=self.closes_s)
            case _:
                return arrival


def _around(rng: random.Random, mean: int) -> int:
    """A log-normal of this mean."""
    return lognormal(rng, math.log(mean) - 0.5 * SIGMA**2, SIGMA, 1, 4 * mean)


def settings(plan: Plan, neighbour: str, ordering: str) -> Settings:
    admits: Settings = {"admission": "slo"} if neighbour == "fields" and ordering not in BY_FIELDS else {}
    return plan.common | {"ordering": ordering} | admits


def of(served: list[Served], tenant: str) -> list[Served]:
    return m.only(served, lambda one: one.tenant == tenant)


def ttft_s(served: list[Served], count: int, plan: Plan) -> list[float]:
    """Of all `count` requests of `a`; one without a first token when the run ended counts with the run's time."""
    found = [one.ttft_s for one in of(served, "a") if one.token_s]
    return found + [plan.until_s] * (count - len(found))


def run(stage: Stage) -> Outcome:
    plan = Plan(stage.real)
    rows: list[Row] = []
    p99: dict[tuple[str, str], list[float]] = {}
    refused: list[float] = []
    for seed in SEEDS[: 1 if stage.real else None]:
        for ordering, neighbours in RUNS.items():
            for neighbour in neighbours:
                row = one_run(stage, plan, neighbour, ordering, seed)
                rows.append(row)
                p99.setdefault((neighbour, ordering), []).append(row.figures[P99])
                if ordering != "fcfs":
                    refused.append(row.figures["a refused"])
    return Outcome(NAME, stage.name, rows, bars(p99, refused), plot=(P99,))


def one_run(stage: Stage, plan: Plan, neighbour: str, ordering: str, seed: int) -> Row:
    arrivals = plan.both(neighbour, seed)
    tenants = CLASSES if ordering in BY_FIELDS else EQUAL
    served = stage.run(arrivals, settings(plan, neighbour, ordering), tenants, plan.until_s).served
    count = sum(arrival.tenant == "a" for arrival in arrivals)
    ours, theirs = of(served, "a"), of(served, "b")
    waits = ttft_s(served, count, plan)
    prompts = sum(one.prompt_tokens for one in ours if one.token_s) or 1
    return Row(
        {"ordering": ordering, "neighbour": neighbour},
        seed,
        {
            "a TTFT P50 (s)": m.percentile(waits, 50),
            P99: m.percentile(waits, 99),
            "a TPOT P99 (ms)": 1e3 * m.tpot(ours, 99) if m.done(ours) else 0.0,
            "a cached": sum(one.cached_tokens for one in ours) / prompts,
            "a preempted": float(sum(one.preemptions for one in ours)),
            "a refused": float(sum(bool(one.refused) for one in ours)),
            "b refused": sum(bool(one.refused) for one in theirs) / max(len(theirs), 1),
            "b tokens/s": sum(len(one.token_s) for one in theirs) / plan.seconds,
        },
    )


def bars(p99: dict[tuple[str, str], list[float]], refused: list[float]) -> list[Bar]:
    def ratios(ordering: str, neighbour: str, base: str = GOOD) -> list[float]:
        return [one / other for one, other in zip(p99[neighbour, ordering], p99[base, ordering], strict=True)]

    return [
        *(most(f"a's TTFT P99 under fair, {attack} / good", ratios("fair", attack), BAR) for attack in ATTACKS),
        *(most(f"a's TTFT P99 under {name}, fields / good", ratios(name, "fields"), BAR) for name in BY_FIELDS),
        each_most("requests of a refused, each run but those of fcfs", refused, 0.0),
        reported("a's TTFT P99 under fair, good / alone", ratios("fair", GOOD, ALONE)),
    ]
