"""S8: agents, whose sessions resend a growing history, and a pool that holds a part of them.

40 sessions of 4,000 to 60,000 tokens think 6 s (log-normal) between turns, each of which adds 700 tokens. When think
times are regular (sigma 0.3), a pool that evicts the least recently used prefix evicts each session just before its
next turn. Retention that knows sessions learns when prefixes are used again, and keeps those whose next use is near.

The bars are on the share of the turns' prompt tokens that were found in the cache, those in host memory included, in
the last two thirds of the run. Lengths are divided by SCALE, and a block of 8 tokens stands for 128, so that one run
takes seconds. A step takes 50 ms on the simulated device, whatever is in it, so that the cache decides and not the
queue. It runs on the virtual clock only.
"""

import random
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import mean

from bench.scenarios import measure as m
from bench.scenarios.bars import Bar, least, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Settings, Simulated, Stage
from jaxserve.core.errors import ConfigError
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival, poisson
from jaxserve.sim.drive import Served
from jaxserve.sim.sessions import Agents, SessionLoop

NAME = "S8"
SEEDS = (81, 82, 83)
RETENTIONS = ("lru", "sessions")
SCALE, BLOCK = 16, 8
LIVE = 1_200_000
"""Tokens of all sessions, on average."""
SECONDS, SETTLED = 300.0, 1 / 3
KV_BYTES = 1024
"""Of a token: with the cost model it only says how large the host tier is."""
COST = FormulaCost(
    source="50 ms a step", overhead_s=0.05, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0, row_s=0.0,
    kv_bytes_per_token=KV_BYTES, move_s_per_token=1e-7,
)  # fmt: skip
REGULAR = Agents(
    sessions=40, think_s=6.0, sigma=0.3, context=(4_000 // SCALE, 12_800 // SCALE), turn=700 / SCALE, answer=BLOCK,
    longest=60_000 // SCALE, block_tokens=BLOCK,
)  # fmt: skip
SCATTERED = replace(REGULAR, sigma=1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """`pool`, `host`: shares of the live tokens that the device and the host memory hold."""

    pool: float
    agents: Agents
    docs_per_s: float = 0.0
    """Documents of 4,000 tokens, each sent once."""
    chat_per_s: float = 0.0
    """Questions of 512 tokens behind a system prompt of 2,048."""
    host: float = 0.0

    def settings(self, retention: str) -> Settings:
        settings: Settings = {
            "block_size": BLOCK, "num_blocks": int(self.pool * LIVE) // SCALE // BLOCK, "enable_prefix_caching": True,
            "prefix_retention": retention, "max_num_batched_tokens": 65_536, "max_num_seqs": 256, "journal_steps": 16,
        }  # fmt: skip
        host_bytes = int(self.host * LIVE) // SCALE * KV_BYTES
        return settings | ({"offload_host_bytes": host_bytes} if host_bytes else {})

    def beside(self, seed: int) -> list[Arrival]:
        found: list[Arrival] = []
        for kind, rate in (("doc", self.docs_per_s), ("chat", self.chat_per_s)):
            if rate:
                rng = random.Random(f"{seed}/{kind}")
                found += [_single(kind, at) for at in takewhile(lambda at: at < SECONDS, poisson(rng, rate))]
        return sorted(found, key=lambda a: a.at_s)


def _single(kind: str, at_s: float) -> Arrival:
    if kind == "doc":
        return Arrival(at_s, 4_000 // SCALE, 1, kind=kind)
    system = tuple(range(1 << 29, (1 << 29) + 2_048 // SCALE // BLOCK))
    return Arrival(at_s, 2_560 // SCALE, BLOCK, kind=kind, prefix_blocks=system, block_tokens=BLOCK)


CASES = {
    "1/2, regular": Case(0.5, REGULAR),
    "1/2": Case(0.5, SCATTERED),
    "3/4": Case(0.75, SCATTERED),
    "1/2, regular, documents": Case(0.5, REGULAR, docs_per_s=1.0),
    "1/2, documents": Case(0.5, SCATTERED, docs_per_s=1.0),
    "1/2, chat": Case(0.5, SCATTERED, chat_per_s=4.0),
    "1/2, forks": Case(0.5, replace(SCATTERED, fork=0.05)),
    "1/2, host tier": Case(0.5, SCATTERED, host=0.6),
    "all": Case(2.0, SCATTERED),
}


def hits(served: list[Served]) -> float:
    """Share of the turns' prompt tokens that were found."""
    turns = [s for s in m.done(served) if s.arrival.kind == "turn" and s.arrival.at_s >= SETTLED * SECONDS]
    return sum(s.cached_tokens for s in turns) / sum(s.prompt_tokens for s in turns)


def serve(case: Case, retention: str, seed: int) -> list[Served]:
    ready = Simulated(COST).ready(Simulated.BASE | case.settings(retention), None, ())
    served = list(ready.serve(SessionLoop(case.agents, seed, SECONDS, case.beside(seed))))
    failed = [s for s in served if s.failed or s.refused]
    assert not failed, f"requests failed: {failed[:3]}"
    return served


def run(stage: Stage) -> Outcome:
    """Raises ConfigError on the real engine, where an answer's tokens are not known as the turns are drawn."""
    if stage.real:
        raise ConfigError("S8 runs on the virtual clock only: leave --real out")
    rows: list[Row] = []
    found: dict[tuple[str, str], list[float]] = {}
    for name, case in CASES.items():
        for retention in RETENTIONS[1 if name == "all" else 0 :]:
            for seed in SEEDS:
                served = serve(case, retention, seed)
                found.setdefault((name, retention), []).append(hits(served))
                figures = {
                    "hits": hits(served),
                    "turns": float(len(m.only(served, lambda s: s.arrival.kind == "turn"))),
                }
                rows.append(Row({"pool": name, "retention": retention}, seed, figures))
    return Outcome(NAME, Simulated(COST).name, rows, bars(found), plot=("hits",))


def bars(found: dict[tuple[str, str], list[float]]) -> list[Bar]:
    """Of the means over the seeds."""
    lru = {name: mean(values) for (name, retention), values in found.items() if retention == "lru"}
    own = {name: mean(values) for (name, retention), values in found.items() if retention == "sessions"}
    return [
        least("hits, pool 1/2, regular think times", [own["1/2, regular"]], 0.33),
        least("hits / LRU's, pool 1/2", [own["1/2"] / lru["1/2"]], 1.0),
        least("hits / LRU's, pool 3/4", [own["3/4"] / lru["3/4"]], 0.95),
        most("hits lost to documents, regular", [own["1/2, regular"] - own["1/2, regular, documents"]], 0.02),
        most("hits lost to documents", [own["1/2"] - own["1/2, documents"]], 0.02),
        least("hits / an endless cache's, host tier holds the rest", [own["1/2, host tier"] / own["all"]], 0.9),
        reported("hits / LRU's beside chat", [own["1/2, chat"] / lru["1/2, chat"]]),
        reported("hits / LRU's, sessions that fork", [own["1/2, forks"] / lru["1/2, forks"]]),
    ]
