"""Where configurations are compared: on this machine's engine, or on the virtual clock at an H200's scale."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.compare.observed import Observed, observe
from bench.stage import RealEngine, SimulatedEngine
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.costs.model import CostModel
from jaxserve.metrics.slo import Slo
from jaxserve.sim.arrivals import Arrival


@dataclass(frozen=True)
class Variant:
    """One configuration: settings that go over the stage's own, and what the table says of it beforehand."""

    name: str
    settings: dict[str, Any]
    labels: dict[str, Any] = field(default_factory=dict)


class Engines(Protocol):
    """A variant that is ready to run. `figures`: what making it ready took."""

    figures: dict[str, Any]

    def run(self, arrivals: Sequence[Arrival], slo: Slo | None, long_from: int) -> Observed: ...


class Stage(Protocol):
    """`config`: what every variant begins with. `cost_model`: where step times come from; None: they are measured."""

    config: EngineConfig
    cost_model: str | None

    def open(self, variant: Variant) -> Any:
        """A context manager that gives `Engines`."""
        ...


def programs(config: EngineConfig) -> int:
    """Step programs; each of a few row counts adds three sampling programs."""
    return len(BucketTable.from_config(config.buckets, config.scheduler).all())


class Simulated:
    """`compile_s`: what compiling a program takes on the machine that is simulated; None: nobody knows."""

    def __init__(self, cost: CostModel, config: EngineConfig, compile_s: float | None = None) -> None:
        self.config, self._cost, self._compile_s = config, cost, compile_s
        self.cost_model: str | None = cost.source

    @contextmanager
    def open(self, variant: Variant) -> Iterator[Engines]:
        config = self.config.replace(**variant.settings)
        count = programs(config)
        compile_s = None if self._compile_s is None else self._compile_s * count
        yield _SimulatedEngines(config, self._cost, {"programs": count, "start_cold_s": compile_s})


@dataclass
class _SimulatedEngines:
    config: EngineConfig
    cost: CostModel
    figures: dict[str, Any]

    def run(self, arrivals: Sequence[Arrival], slo: Slo | None, long_from: int) -> Observed:
        return observe(SimulatedEngine(self.config, self.cost), arrivals, slo=slo, long_from=long_from)


class Real:
    """The engine with the model of `config`. Each variant starts twice with a compilation cache of its own: the first
    time it is empty, the second it holds all that the first compiled."""

    cost_model: str | None = None

    def __init__(self, config: EngineConfig, twice: bool = True) -> None:
        self.config, self._twice = config, twice

    @contextmanager
    def open(self, variant: Variant) -> Iterator[Engines]:
        import jax

        from jaxserve.llm import LLM
        from jaxserve.runtime.programs.compilation import set_compilation_cache_folder

        config = self.config.replace(**variant.settings)
        before = jax.config.jax_compilation_cache_dir
        with tempfile.TemporaryDirectory(prefix="jaxserve-compare-") as cache:
            config = config.replace(compilation_cache_dir=cache)
            starts: list[float] = []
            llm: Any = None
            for _ in range(1 + self._twice):
                if llm is not None:
                    llm.close()
                begin = time.perf_counter()
                llm = LLM(config=config, progress=False)
                starts.append(time.perf_counter() - begin)
            figures = {"programs": programs(config), "start_cold_s": starts[0]}
            try:
                yield _OneEngine(RealEngine(llm), figures | ({"start_warm_s": starts[1]} if self._twice else {}))
            finally:
                llm.close()
                set_compilation_cache_folder(before)


@dataclass
class _OneEngine:
    engine: RealEngine
    figures: dict[str, Any]

    def run(self, arrivals: Sequence[Arrival], slo: Slo | None, long_from: int) -> Observed:
        return observe(self.engine, arrivals, slo=slo, long_from=long_from)
