"""A machine whose speed swings, and callers that send their next request when they have the answer to the last."""

import heapq
import math
from dataclasses import dataclass

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel, StepFeatures
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.host_side import Sizes, host_side
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.drive import Lane, Served
from jaxserve.sim.executor import SimExecutor

RETRY_S = 0.25
"""When a caller that was refused tries again."""


@dataclass(frozen=True)
class Swinging:
    """A cost model whose steps take `factor` times as long while the clock is from `begin_s` to `end_s`."""

    cost: CostModel
    clock: VirtualClock
    factor: float
    begin_s: float
    end_s: float

    @property
    def source(self) -> str:
        return self.cost.source

    def seconds(self, features: StepFeatures) -> float:
        slow = self.begin_s <= self.clock.now() < self.end_s
        return self.cost.seconds(features) * (self.factor if slow else 1.0)


def swinging_engine(
    config: EngineConfig, machine: CostModel, clock: VirtualClock, costs: StepCosts, tenants: Tenants, blocks: int
) -> Engine:
    """An engine on that machine, that knows of it what `costs` says."""
    sizes = Sizes(vocab_size=1 << 31, max_len=1024, num_blocks=blocks)
    return host_side(config, sizes, SimExecutor(machine, clock), clock, costs=costs, tenants=tenants)


@dataclass(frozen=True)
class Caller:
    tenant: str
    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0
    begins_s: float = 0.0


def call(engine: Engine, clock: VirtualClock, callers: list[Caller], until_s: float) -> list[Served]:
    """What became of the requests that ended or were refused until then."""
    lane, found = Lane(engine, clock), list[Served]()
    due = [(caller.begins_s, i) for i, caller in enumerate(callers)]
    heapq.heapify(due)
    sent: dict[int, int] = {}  # request's number -> caller
    engine.expects_more = True
    while lane.now_s < until_s:
        at_s = due[0][0] if due else math.inf
        if at_s <= lane.next_s:
            _, i = heapq.heappop(due)
            caller, number = callers[i], len(sent)
            sent[number] = i
            refused = lane.take(number, Arrival(at_s, caller.prompt_tokens, caller.output_tokens, caller.tenant))
            if refused is not None:
                found.append(refused)
                heapq.heappush(due, (at_s + RETRY_S, i))
        else:
            for served in lane.step():
                found.append(served)
                heapq.heappush(due, (lane.now_s + callers[sent[served.number]].think_s, sent[served.number]))
    return found
