"""S6: two tenants of equal weight, one of which asks for ten times as much; both always have something waiting.

First come, first served gives each what it asks for. The ordering `fair` gives each the same service, a prompt token
counted once and an output token twice, at the same total; and a tenant that was idle comes back to an equal share, not
to all that it has missed.
"""

import random

from bench.scenarios import measure as m
from bench.scenarios.bars import least, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Settings, Stage
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sim.arrivals import Arrival, lognormal, uniform
from jaxserve.sim.drive import Served

NAME = "S6"
SEEDS = (31, 32, 33)
SECONDS, AFTER, WINDOW = 60.0, 75.0, 10.0
KV_TOKENS, LONGEST = 65_536, 256
W_IN, W_OUT = 1.0, 2.0
RETURN_S = 30.0
COMMON: Settings = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "num_blocks": KV_TOKENS // 16}
TENANTS = Tenants([Tenant(name="a"), Tenant(name="b")])


def requests(seed: int, b_from_s: float = 0.0) -> list[Arrival]:
    """11 times what one tenant can be served in a minute; b comes at once, or later."""
    rng = random.Random(seed)
    found = []
    for tenant, count in (("a", 30_000), ("b", 3_000)):
        at = b_from_s if tenant == "b" else 0.0
        found += [
            Arrival(at, uniform(rng, 32, LONGEST), lognormal(rng, 4.0, 0.6, 8, 256), tenant) for _ in range(count)
        ]
    rng.shuffle(found)
    return sorted(found, key=lambda a: a.at_s)


def service(served: list[Served]) -> list[tuple[float, str, float]]:
    """(time, tenant, weighted tokens): the prompt with the first token, and every output token."""
    events = []
    for s in m.done(served):
        events.append((s.token_s[0], s.arrival.tenant, W_IN * s.arrival.prompt_tokens))
        events += [(at, s.arrival.tenant, W_OUT) for at in s.token_s]
    return sorted(events)


def between(events: list[tuple[float, str, float]], from_s: float, to_s: float) -> dict[str, float]:
    shares = {"a": 0.0, "b": 0.0}
    for at, tenant, tokens in events:
        if from_s <= at < to_s:
            shares[tenant] += tokens
    return shares


def widest_gap(events: list[tuple[float, str, float]]) -> float:
    """The largest difference of service since the start, at any time while both are backlogged."""
    gap = widest = 0.0
    for at, tenant, tokens in events:
        if at < SECONDS:
            gap += tokens if tenant == "a" else -tokens
            widest = max(widest, abs(gap))
    return widest


def run(stage: Stage) -> Outcome:
    rows: list[Row] = []
    values: dict[str, list[float]] = {}
    bound = 2.0 * max(W_IN * LONGEST, W_OUT * KV_TOKENS)
    for seed in SEEDS:
        rates = {}
        for name, settings in _policies().items():
            served = stage.run(requests(seed), COMMON | settings, TENANTS, AFTER).served
            events = service(served)
            windows = [between(events, at, at + WINDOW) for at in range(0, int(SECONDS), int(WINDOW))]
            fairness = min(m.jain(list(w.values())) for w in windows)
            rates[name] = sum(at < SECONDS for s in m.done(served) for at in s.token_s) / SECONDS
            rows.append(_row(name, seed, rates[name], fairness, widest_gap(events), between(events, 0.0, SECONDS)))
            if name == "fair":
                values.setdefault("gap", []).append(widest_gap(events) / bound)
                values.setdefault("jain", []).append(fairness)
            if name == "fair, time":
                values.setdefault("jain, time", []).append(fairness)
        values.setdefault("rate", []).append(rates["fair"] / rates["fcfs"])
        late = service(stage.run(requests(seed, RETURN_S), COMMON | {"ordering": "fair"}, TENANTS, AFTER).served)
        back = between(late, RETURN_S + 1.0, RETURN_S + 1.0 + WINDOW)
        values.setdefault("return", []).append(back["b"] / (back["a"] + back["b"]))
    bars = [
        most("widest gap of service / VTC's bound", values["gap"], 1.0),
        least("Jain's index of service, worst window of 10 s", values["jain"], 0.95),
        least("output tokens/s, fair / fcfs", values["rate"], 0.97),
        most("share of a tenant that returns after 30 s, next 10 s", values["return"], 0.55),
        reported("Jain's index with fairness by time", values["jain, time"]),
    ]
    return Outcome(NAME, stage.name, rows, bars, plot=("Jain, worst window", "served of b"))


def _policies() -> dict[str, Settings]:
    return {
        "fcfs": {"ordering": "fcfs"},
        "fair": {"ordering": "fair"},
        "fair, time": {"ordering": "fair", "fairness": "time"},
    }


def _row(name: str, seed: int, rate: float, fairness: float, gap: float, total: dict[str, float]) -> Row:
    return Row(
        {"ordering": name},
        seed,
        {
            "tokens/s": rate,
            "Jain, worst window": fairness,
            "widest gap (tokens)": gap,
            "served of b": total["b"] / (total["a"] + total["b"]),
        },
    )
