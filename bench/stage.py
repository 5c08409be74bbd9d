"""Engines that a benchmark serves requests with: the real one on this machine, and the simulated one.

    RealEngine(llm)                  the engine of an `LLM` on the machine's clock, for any number of runs
    SimulatedEngine(config, cost)    the same on a virtual clock, where a cost model says what a step takes; for one run

Both take a list of arrivals and yield what became of each, so that a benchmark's own code is the same for both. What a
benchmark adds (which configurations it runs, what it observes) stands in its own folder: `compare/stage.py`,
`scenarios/stage.py`, `fidelity/rounds.py`.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxserve.core.clock import Clock, MonotonicClock, VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import JaxserveError
from jaxserve.core.step_record import Observer
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel
from jaxserve.engine.engine import Engine
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Prompts, Served, drive, made_up
from jaxserve.sim.sources import Source

if TYPE_CHECKING:  # simulated runs do not load JAX
    from jaxserve.llm import LLM

BEGINNINGS = 1 << 14
"""So many prompts of `random_prompts` begin differently."""


class ReadyEngine:
    """An engine that nothing else uses, its clock, and the prompts of its requests."""

    def __init__(self, engine: Engine, clock: Clock, prompts: Prompts = made_up) -> None:
        self.engine = engine
        self._clock, self._prompts = clock, prompts

    def serve(
        self, arrivals: Iterable[Arrival] | Source, *observers: Observer, until_s: float | None = None
    ) -> Iterator[Served]:
        """Yield what became of each request when it ends. `observers` see the steps of this run alone.

        `until_s`: stop when a request ends after this time (seconds since the run began); requests that are still under
        way are not yielded.
        """
        self.engine.observers += observers
        try:
            for served in drive(self.engine, self._clock, arrivals, self._prompts):
                yield served
                if until_s is not None and served.token_s and served.token_s[-1] > until_s:
                    return
        finally:
            for observer in observers:
                self.engine.observers.remove(observer)


class SimulatedEngine(ReadyEngine):
    def __init__(self, config: EngineConfig, cost: CostModel, tenants: Tenants | None = None) -> None:
        clock = VirtualClock()
        super().__init__(simulated_engine(config, cost, clock, tenants), clock)


class RealEngine(ReadyEngine):
    def __init__(self, llm: "LLM") -> None:
        limits = llm.limits
        super().__init__(llm.engine, MonotonicClock(), random_prompts(limits.vocab_size, limits.max_model_len))
        self._llm = llm

    def warm_up(self, arrivals: Iterable[Arrival]) -> None:
        """Serve these at once, uncounted: a new engine is a tenth slower until its memory has been touched."""
        for _ in self.serve(replace(arrival, at_s=0.0) for arrival in arrivals):
            pass

    def serve(
        self, arrivals: Iterable[Arrival], *observers: Observer, until_s: float | None = None
    ) -> Iterator[Served]:
        """As above; a run that has come to its end leaves the engine empty for the next one.

        Raises:
          JaxserveError: a program was compiled while serving, so that the times would be the compiler's.
        """
        yield from super().serve(arrivals, *observers, until_s=until_s)
        engine = self.engine
        for name in {sequence.request.id for sequence in engine.scheduler.live()}:
            engine.abort(name)  # under way when the run was stopped
        while engine.has_work:
            engine.step()
        engine.scheduler.blocks.drop_prefixes()
        if compiled := self._llm.runner.compilations_after_warmup:
            raise JaxserveError(f"{compiled} programs were compiled while serving: the buckets do not cover the steps")


def random_prompts(vocab_size: int, longest: int) -> Prompts:
    """Random tokens, the same in every run. Prompts begin alike only where their `prefix_blocks` do, so that the prefix
    cache cannot help otherwise."""
    tokens, shared = (random.Random(seed).choices(range(vocab_size), k=BEGINNINGS + longest) for seed in (0, 1))

    def prompt(arrival: Arrival, number: int) -> tuple[int, ...]:
        found: list[int] = []
        for block in arrival.prefix_blocks:
            begin = block % BEGINNINGS
            found += shared[begin : begin + arrival.block_tokens]
        begin = number % BEGINNINGS
        found += tokens[begin : begin + max(arrival.prompt_tokens - len(found), 0)]
        return tuple(found[: arrival.prompt_tokens])

    return prompt
