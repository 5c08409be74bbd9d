"""Where a scenario runs: the simulated H200, or the real engine with a small model. The scenario's code is the same."""

import gc
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.shared.rates import throughput
from bench.stage import ReadyEngine, RealEngine, SimulatedEngine
from jaxserve.checkpoints import config_from_hf
from jaxserve.core.config import EngineConfig
from jaxserve.core.step_record import StepRecord
from jaxserve.core.tenants import Tenants
from jaxserve.costs.file import load_cost
from jaxserve.costs.model import CostModel
from jaxserve.server.serve import settle_heap
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.drive import Served

ROOT = Path(__file__).parent.parent.parent
H200 = ROOT / "configs" / "cost" / "h200_8b_nominal.json"
PAGES = 1_000_000 // 16
Settings = dict[str, Any]
ROUNDS = 3
"""Runs of every policy at saturation on the real engine, in turn; the middle one counts. One takes about a second."""
KEPT = 7
"""Real engines at once: each has some thirty programs of some two hundred memory maps, and Linux gives a process 65,530
of these."""
WARMING = 40
"""Requests that a new real engine serves before any count."""


@dataclass
class Occupancy:
    """How much of the time a step ran, and of how many rows: an observer of the engine."""

    busy_s: float = 0.0
    row_s: float = 0.0
    """Rows of each step times its seconds, summed."""

    def observe(self, record: StepRecord) -> None:
        if record.plan is not None and record.plan.bucket.tokens:
            self.busy_s += record.seconds
            self.row_s += record.seconds * (len(record.plan.decodes) + len(record.plan.prefills))


@dataclass
class Run:
    """One policy on one list of requests."""

    served: list[Served]
    occupancy: Occupancy


class Stage(ABC):
    """`real`: measured on this machine, and not on the virtual clock. `BASE`: what a policy's settings go over."""

    real: ClassVar[bool]
    BASE: ClassVar[Settings]

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def ready(self, settings: Settings, tenants: Tenants | None, arrivals: Sequence[Arrival]) -> ReadyEngine:
        """An engine of these settings; `arrivals` are those that it will serve."""

    def run(
        self,
        arrivals: Sequence[Arrival],
        settings: Settings,
        tenants: Tenants | None = None,
        until_s: float | None = None,
    ) -> Run:
        """`until_s`: stop when a request ends after this time; those under way are left out."""
        ready, occupancy = self.ready(self.BASE | settings, tenants, arrivals), Occupancy()
        served = sorted(ready.serve(arrivals, occupancy, until_s=until_s), key=lambda s: s.number)
        failed = [s for s in served if s.failed and not (s.failed == "aborted" and s.arrival.aborts)]
        assert not failed, f"requests failed: {failed[:3]}"
        if until_s is None:
            assert sum(s.last for s in served) == len(arrivals), "requests were lost"
            pool = ready.engine.scheduler.blocks.pool
            assert pool.num_free == pool.capacity, "the pool is not whole"
        return Run(served, occupancy)


def saturated(stage: Stage, arrivals: Sequence[Arrival], policies: dict[str, Settings]) -> dict[str, Run]:
    """A run of every policy with all requests at once; on the real engine, of ROUNDS the one of middle throughput."""
    rounds = [
        {name: stage.run(arrivals, settings) for name, settings in policies.items()}
        for _ in range(ROUNDS if stage.real else 1)
    ]
    return {
        name: sorted((one[name] for one in rounds), key=lambda run: throughput(run.served))[len(rounds) // 2]
        for name in policies
    }


@dataclass
class Simulated(Stage):
    """The engine on a virtual clock. Steps are not overlapped: the formula's overhead is the host's part."""

    real = False
    BASE: ClassVar[Settings] = {
        "block_size": 16, "num_blocks": PAGES, "enable_prefix_caching": False, "overlap": False,
        "prefill_rows": 32, "max_waiting": 1_000_000, "fill_buckets": False,
    }  # fmt: skip
    cost: CostModel = field(default_factory=lambda: load_cost(H200))

    @property
    def name(self) -> str:
        return f"virtual clock, {self.cost.source}"

    def ready(self, settings: Settings, tenants: Tenants | None, arrivals: Sequence[Arrival]) -> ReadyEngine:
        return SimulatedEngine(EngineConfig.from_settings(**settings), self.cost, tenants)


class Real(Stage):
    """The real engine: a Llama of 0.5M parameters with random weights, in float32 on this CPU."""

    real = True
    BASE: ClassVar[Settings] = {
        "num_blocks": 1025, "enable_prefix_caching": False, "max_waiting": 1_000_000,
        "prefill_rows": 8, "max_model_len": 512, "progress": False,
    }  # fmt: skip
    HF: ClassVar[dict[str, Any]] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 384,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip

    def __init__(self) -> None:
        import jax.numpy as jnp

        from jaxserve.models.params import random_params

        self._config = config_from_hf(self.HF)
        self._params = random_params(self._config, seed=0, dtype=jnp.float32)
        self._engines: dict[str, RealEngine] = {}  # by settings: programs are compiled once

    @property
    def name(self) -> str:
        from bench.shared.machine import describe

        machine = describe()
        return f"real engine, 0.5M parameters, {machine['cpu']}, {machine['cores']} cores, JAX {machine['jax']}"

    def ready(self, settings: Settings, tenants: Tenants | None, arrivals: Sequence[Arrival]) -> ReadyEngine:
        key = repr((sorted(settings.items()), tenants and [*tenants]))
        ready = self._engines.pop(key, None)
        if ready is None:
            if len(self._engines) == KEPT:
                del self._engines[next(iter(self._engines))]
                gc.collect()
            ready = self._make(settings, tenants)
            ready.warm_up(arrivals[:WARMING])
        self._engines[key] = ready  # behind the others: the first one was not used for longest
        settle_heap()  # as the server does
        return ready

    def _make(self, settings: Settings, tenants: Tenants | None) -> RealEngine:
        from jaxserve.llm import LLM

        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            if tenants is not None:
                file.write(_toml(tenants))
                file.flush()
                settings = settings | {"tenants": file.name}
            return RealEngine(LLM(params=self._params, model_config=self._config, **settings))


def _toml(tenants: Tenants) -> str:
    """What the scenarios set of a tenant, as a file of tenants."""
    lines: list[str] = []
    for tenant in tenants:
        lines += [f"[tenants.{tenant.name}]", f"priority = {tenant.priority}", f"kv_max = {tenant.kv_max}"]
        lines += [f"ttft_slo_s = {tenant.ttft_slo_s}"] if tenant.ttft_slo_s is not None else []
    return "\n".join(lines) + "\n"
