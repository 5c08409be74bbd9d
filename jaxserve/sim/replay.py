"""Runs a record again, decision by decision: the same scheduler, with the recorded step times for a device.

    time        10        11   12        14
    record      plan 5    add  commit 4  plan 6      the engine adds between steps, plans, then waits for the step
    replayed    |-- step() ---------|    |-- step()  before: one call a plan, as the engine's own loop makes them

Every plan is compared with the recorded one: the same rows in the same bucket, the same preemptions. Tokens are made
up so that blocks are equal where the recorded ones were, and so that sequences end where they ended.

With KV offload the moves between tiers are not in the record, and the replay's decisions may part from it.
"""

import heapq
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from jaxserve.core.clock import VirtualClock
from jaxserve.core.errors import InvalidRequest, TooBusy
from jaxserve.core.plan import Masks, StepPlan, StepResult
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request
from jaxserve.costs.model import StepFeatures
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.host_side import Sizes, host_side
from jaxserve.sim.build import VOCAB_SIZE
from jaxserve.sim.record import Record, RecordedRequest, RecordedStep
from jaxserve.sim.recorder import UNKNOWN, Name, decision

STOP = 0
"""The token that ends a sequence where the recorded one stopped."""
_HALF = 1 << 30


@dataclass(slots=True)
class ReplayReport:
    steps: int
    """Recorded."""
    same: int
    """Decided as recorded, in the same place."""
    first_difference: int | None = None
    """The first step (its recorded number) that was decided otherwise."""
    was: str = ""
    became: str = ""

    @property
    def share(self) -> float:
        return self.same / self.steps if self.steps else 1.0


def replay(record: Record) -> ReplayReport:
    """Run a record again and compare every decision."""
    clock = VirtualClock()
    executor = _ReplayExecutor(record, clock)
    sizes = Sizes(vocab_size=VOCAB_SIZE, max_len=record.max_model_len, num_blocks=record.num_blocks)
    engine = host_side(record.config, sizes, executor, clock, costs=StepCosts(record.cost), tenants=record.tenants)
    engine.expects_more = True
    _run(engine, clock, record, executor)
    return executor.report()


def _run(engine: Engine, clock: VirtualClock, record: Record, executor: "_ReplayExecutor") -> None:
    """One call of `step` for every plan, and one for every commit that no plan came before."""
    outside = sorted(_outside(record), key=_moment)
    moments = heapq.merge(
        ((step.planned_s, 2, step) for step in record.steps),
        ((step.committed_s, 0, None) for step in sorted(record.steps, key=lambda s: s.committed_s)),
        outside,
        key=_moment,
    )
    planned = False
    for at_s, kind, what in moments:
        if kind == 2 and planned:  # two plans in a row: the first filled the pipeline
            engine.step()
        if kind == 2:
            clock.sleep_until(at_s)
            planned = True
        elif kind == 0:
            engine.step()
            planned = False
            clock.sleep_until(at_s)
        else:
            if planned:  # its step was only dispatched, and commands were taken before the next
                engine.step()
                planned = False
            clock.sleep_until(at_s)
            _do(engine, what)
    while engine.has_work and executor.left and not engine.idle:
        engine.step()


def _moment(entry: tuple[float, int, object]) -> tuple[float, int]:
    return entry[:2]


def _outside(record: Record) -> Iterator[tuple[float, int, object]]:
    """What came between steps: requests, and ends that no step brought."""
    for request in record.requests:
        yield request.queued_s, 1, request
        for end in request.ends.values():
            if end.reason in ("abort", "error"):
                yield end.ended_s, 1, str(request.number)


def _do(engine: Engine, what: object) -> None:
    if isinstance(what, str):
        engine.abort(what)
    elif isinstance(what, RecordedRequest):
        with suppress(InvalidRequest, TooBusy):  # refused again, as it was; if it was not, the steps will differ
            engine.add(_request(what, engine.scheduler.blocks.block_size))


def _request(recorded: RecordedRequest, block_size: int) -> Request:
    ends = recorded.ends
    blocks = ends[min(ends)].blocks if ends else ()
    tokens = [_content(blocks, position, block_size, recorded.number) for position in range(recorded.prompt_tokens)]
    params = SamplingParams(
        max_tokens=recorded.max_output_tokens, n=recorded.n, seed=0, ignore_eos=True, stop_token_ids=(STOP,),
        temperature=1.0,
    )  # fmt: skip
    return Request(
        id=str(recorded.number), prompt=tuple(tokens), params=params, arrival_s=recorded.arrival_s,
        tenant=recorded.tenant, priority=recorded.priority, ttft_slo_s=recorded.ttft_slo_s,
        tpot_slo_s=recorded.tpot_slo_s, owner=recorded.owner,
    )  # fmt: skip


def _content(blocks: tuple[int, ...], position: int, block_size: int, number: int) -> int:
    """A token that is equal for equal blocks, and nobody else's in the rest."""
    block = position // block_size
    return 1 + blocks[block] % _HALF if block < len(blocks) else 1 + _HALF + number % (_HALF - 1)


class _ReplayExecutor:
    """A device whose steps take as long as the recorded ones, in their order."""

    def __init__(self, record: Record, clock: VirtualClock) -> None:
        self._record, self._clock = record, clock
        self._requests = {str(request.number): request for request in record.requests}
        self._block_size = record.config.cache.block_size
        self._names: dict[int, Name] = {}  # by slot
        self._next = 0
        self._same = 0
        self._difference: tuple[int, str, str] | None = None

    @property
    def left(self) -> bool:
        """Recorded steps that have not been planned."""
        return self._next < len(self._record.steps)

    def submit(self, plan: StepPlan) -> "_ReplayPending":
        steps = self._record.steps
        recorded = steps[self._next] if self.left else None
        self._next += 1
        preempted = [self._names.get(slot, UNKNOWN) for slot in plan.preempted]
        for admitted in plan.admitted:
            self._names[admitted.slot] = int(admitted.request_id), admitted.completion
        if recorded is not None:
            self._compare(plan, preempted, recorded)
        ends_s = recorded.committed_s if recorded is not None else -math.inf
        counts = np.array([row.wants.token for row in plan.rows], np.int32)
        tokens = [self._token(self._names[row.slot], row.start + row.length) for row in plan.rows if row.wants.token]
        return _ReplayPending(self._clock, ends_s, StepResult(np.array(tokens, np.int64).astype(np.int32), counts))

    def reset(self) -> None:
        """Nothing is kept of a sequence."""

    def report(self) -> ReplayReport:
        report = ReplayReport(len(self._record.steps), self._same)
        if self._difference is not None:
            report.first_difference, report.was, report.became = self._difference
        return report

    def _compare(self, plan: StepPlan, preempted: list[Name], recorded: RecordedStep) -> None:
        rows = [self._names[row.slot] for row in plan.rows]
        if decision(plan, rows, preempted) == recorded.decision:
            self._same += 1
        elif self._difference is None:
            self._difference = recorded.step, _words(recorded.features), _words(StepFeatures.of(plan))

    def _token(self, name: Name, position: int) -> int:
        """The token that the sequence has at `position`."""
        number, index = name
        recorded = self._requests[str(number)]
        end = recorded.ends.get(index)
        if end is None:
            return 1
        if end.reason == "stop" and position - recorded.prompt_tokens == end.output_tokens - 1:
            return STOP
        return _content(end.blocks, position, self._block_size, recorded.number)


@dataclass(frozen=True, slots=True)
class _ReplayPending:
    clock: VirtualClock
    ends_s: float
    result: StepResult

    def sample(self, masks: Masks | None = None) -> None:
        """Tokens are the recorded ones."""

    def wait(self) -> StepResult:
        self.clock.sleep_until(self.ends_s)
        return self.result


def _words(f: StepFeatures) -> str:
    return f"{f.decode_rows} decodes, {f.prefill_tokens} tokens of {f.prefill_rows} prompts, bucket {f.bucket}"
