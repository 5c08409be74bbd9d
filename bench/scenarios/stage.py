"""Where a scenario runs: the simulated H200, or the real engine with a small model. The scenario's code is the same."""

import gc
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.scenarios.measure import throughput
from jaxserve.checkpoints import config_from_hf
from jaxserve.core.clock import Clock, MonotonicClock, VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.step_record import StepRecord
from jaxserve.core.tenants import Tenants
from jaxserve.costs.file import load_cost
from jaxserve.costs.model import CostModel
from jaxserve.engine.engine import Engine
from jaxserve.server.serve import settle_heap
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Prompts, Served, drive, made_up

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
"""Requests that a new real engine serves before any count: it is a tenth slower until its memory has been touched."""


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
    engine: Engine
    occupancy: Occupancy = field(default_factory=Occupancy)


class Stage(Protocol):
    """`real`: measured on this machine, and not on the virtual clock."""

    real: bool
    name: str

    def run(
        self,
        arrivals: Sequence[Arrival],
        settings: Settings,
        tenants: Tenants | None = None,
        until_s: float | None = None,
    ) -> Run:
        """`until_s`: stop when a request ends after this time; those under way are left out."""
        ...


@dataclass
class Simulated:
    """The engine on a virtual clock. Steps are not overlapped: the formula's overhead is the host's part."""

    cost: CostModel = field(default_factory=lambda: load_cost(H200))
    real: bool = False

    @property
    def name(self) -> str:
        return f"virtual clock, {self.cost.source}"

    def run(
        self,
        arrivals: Sequence[Arrival],
        settings: Settings,
        tenants: Tenants | None = None,
        until_s: float | None = None,
    ) -> Run:
        base: Settings = {
            "block_size": 16, "num_blocks": PAGES, "enable_prefix_caching": False, "overlap": False,
            "prefill_rows": 32, "max_waiting": 1_000_000, "fill_buckets": False,
        }  # fmt: skip
        clock = VirtualClock()
        engine = simulated_engine(EngineConfig.from_settings(**(base | settings)), self.cost, clock, tenants)
        return finish(engine, clock, arrivals, until_s)


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


def finish(
    engine: Engine,
    clock: Clock,
    arrivals: Sequence[Arrival],
    until_s: float | None = None,
    prompts: Prompts = made_up,
) -> Run:
    served: list[Served] = []
    occupancy = Occupancy()
    engine.observers.append(occupancy)
    for one in drive(engine, clock, arrivals, prompts):
        served.append(one)
        if until_s is not None and one.token_s and one.token_s[-1] > until_s:
            break
    engine.observers.remove(occupancy)
    served.sort(key=lambda s: s.number)
    failed = [s for s in served if s.failed]
    assert not failed, f"requests failed: {failed[:3]}"
    if until_s is None:
        assert len(served) == len(arrivals), "requests were lost"
        pool = engine.scheduler.blocks.pool
        assert pool.num_free == pool.capacity, "the pool is not whole"
    return Run(served, engine, occupancy)


class Real:
    """The real engine: a Llama of 0.5M parameters with random weights, in float32 on this CPU."""

    real = True
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
        self._engines: dict[str, Any] = {}  # by settings: programs are compiled once

    @property
    def name(self) -> str:
        from bench.machine import describe

        machine = describe()
        return f"real engine, 0.5M parameters, {machine['cpu']}, {machine['cores']} cores, JAX {machine['jax']}"

    def _make(self, settings: Settings, tenants: Tenants | None) -> Any:
        from jaxserve.llm import LLM

        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            if tenants is not None:
                file.write(_toml(tenants))
                file.flush()
                settings = settings | {"tenants": file.name}
            return LLM(params=self._params, model_config=self._config, **settings)

    def run(
        self,
        arrivals: Sequence[Arrival],
        settings: Settings,
        tenants: Tenants | None = None,
        until_s: float | None = None,
    ) -> Run:
        base: Settings = {
            "num_blocks": 1025, "enable_prefix_caching": False, "max_waiting": 1_000_000,
            "prefill_rows": 8, "max_model_len": 512, "progress": False,
        }  # fmt: skip
        rng = random.Random(0)
        tokens = [rng.randrange(512) for _ in range(512 + 2048)]

        def prompts(arrival: Arrival, number: int) -> tuple[int, ...]:
            start = number % 512
            return tuple(tokens[start : start + arrival.prompt_tokens])

        key = repr((sorted(settings.items()), tenants and [*tenants]))
        llm = self._engines.pop(key, None)
        if llm is None:
            if len(self._engines) == KEPT:
                del self._engines[next(iter(self._engines))]
                gc.collect()
            llm = self._make(base | settings, tenants)
            finish(llm.engine, MonotonicClock(), [replace(a, at_s=0.0) for a in arrivals[:WARMING]], None, prompts)
        self._engines[key] = llm  # behind the others: the first one was not used for longest
        settle_heap()  # as the server does
        run = finish(llm.engine, MonotonicClock(), arrivals, until_s, prompts)
        for name in {sequence.request.id for sequence in llm.engine.scheduler.live()}:
            llm.engine.abort(name)  # whoever was under way at the end of the run
        while llm.engine.has_work:
            llm.engine.step()
        compiled = llm.runner.compilations_after_warmup
        assert compiled == 0, f"{compiled} programs were compiled while serving"
        return run


def _toml(tenants: Tenants) -> str:
    """What the scenarios set of a tenant, as a file of tenants."""
    lines: list[str] = []
    for tenant in tenants:
        lines += [f"[tenants.{tenant.name}]", f"priority = {tenant.priority}", f"kv_max = {tenant.kv_max}"]
        lines += [f"ttft_slo_s = {tenant.ttft_slo_s}"] if tenant.ttft_slo_s is not None else []
    return "\n".join(lines) + "\n"
