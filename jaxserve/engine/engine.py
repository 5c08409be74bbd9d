"""The engine: requests in, outputs out, one step at a time. All of serving is a loop around `Engine.step`.

plan    = scheduler.plan(now)       who runs, which blocks, which bucket
pending = executor.submit(plan)     the model is dispatched; returns at once
record  = scheduler.commit(result)  overlapped: of the step before this one, while the model runs
pending.sample(masks)               the sampler is dispatched
"""

import random
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from jaxserve.core.clock import Clock
from jaxserve.core.errors import DuplicateRequest, InvalidRequest, TooBusy
from jaxserve.core.events import Event, Refused
from jaxserve.core.plan import StepPlan
from jaxserve.core.sequence import FinishReason, Request, Sequence
from jaxserve.core.step_record import Observer, StepRecord
from jaxserve.engine.executor import Executor, Pending
from jaxserve.engine.limits import Limits
from jaxserve.engine.outputs import OutputProcessor, SequenceOutput
from jaxserve.sched.scheduler import Scheduler
from jaxserve.text.tokenizer import Tokenizer

T = TypeVar("T")


class Engine:
    """Joins a scheduler and an executor. Not thread-safe: one thread adds, steps and aborts.

    `overlap`: plan and dispatch a step before the one before it is back; tokens are the same either way.
    `tokenizer` None: outputs carry tokens and no text, and stop strings are refused.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        limits: Limits,
        clock: Clock,
        tokenizer: Tokenizer | None = None,
        *,
        overlap: bool = True,
        seed: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self.limits = limits
        self._executor = executor
        self._clock = clock
        self._outputs = OutputProcessor(tokenizer)
        self._depth = 1 if overlap else 0
        self._in_flight: deque[Pending] = deque()
        self._live: dict[str, list[Sequence]] = {}
        self._events: list[Event] = []
        self._kept: list[SequenceOutput] = []
        self._seeds = random.Random(seed)
        self._idle = False
        self.observers: list[Observer] = []
        """Are shown every step: metrics, a timeline. Add one between steps only."""

    @property
    def has_work(self) -> bool:
        """There is something to step for, or outputs to fetch."""
        return self.under_way or bool(self._kept)

    @property
    def under_way(self) -> bool:
        """True while a sequence waits or runs, or a finish is unreported."""
        return self.scheduler.has_work or bool(self._in_flight) or bool(self._events)

    @property
    def idle(self) -> bool:
        """The last step found nothing that could run: until `wake_s` or a new request, the next will not either."""
        return self._idle

    @property
    def now(self) -> float:
        """What the engine's clock shows."""
        return self._clock.now()

    @property
    def wake_s(self) -> float | None:
        """When, on the engine's clock, an idle engine should step again though nothing came; None: at no time."""
        return self.scheduler.wake_s(self._clock.now())

    @property
    def expects_more(self) -> bool:
        """More requests may come, so that a batch may wait for them. A server says yes, an offline run no."""
        return self.scheduler.expects_more

    @expects_more.setter
    def expects_more(self, value: bool) -> None:
        self.scheduler.expects_more = value

    def add(self, request: Request) -> list[Sequence]:
        """Queue a request; its outputs come from later steps.

        Raises:
          InvalidRequest: it can never be served; the message says what to change. Nothing else is affected.
          QueueFull: too many wait; try again later.
        """
        try:
            return self._add(request)
        except (TooBusy, InvalidRequest) as error:
            reason = error.reason if isinstance(error, TooBusy) else "invalid"
            refused = Refused(self.scheduler.tenants[request.tenant].name, reason, request)
            self._show(StepRecord([refused], self._clock.now()))
            raise

    def check(self, request: Request) -> int:
        """The most tokens that its prompt and an output may reach together.

        Raises:
          InvalidRequest: `add` would refuse it, now and later.
        """
        if request.id in self._live:
            raise DuplicateRequest(request.id)
        self._outputs.check(request)
        return self.limits.check(request)

    def _add(self, request: Request) -> list[Sequence]:
        max_len = self.check(request)
        params = request.params
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        sequences = [Sequence(request, i, max_len, (seed + i) % 2**64) for i in range(params.n)]
        self.scheduler.add(sequences, self._clock.now())
        self._live[request.id] = sequences
        for sequence in sequences:
            self._outputs.open(sequence)
        return sequences

    def abort(self, request_id: str) -> bool:
        """End a request; its blocks are free at once. False: no such live request."""
        sequences = self._live.get(request_id, [])
        for sequence in sequences:
            self.scheduler.finish(sequence, FinishReason.ABORT, self._clock.now())
        return bool(sequences)

    # --- the step ---------------------------------------------------------------------------------------------

    def step(self) -> list[SequenceOutput]:
        """Run one step and return what became known: the outputs of this step, or, overlapped, of the one before.

        A step that fails ends what ran with `FinishReason.ERROR`; the next steps serve what waits. So does a step that
        is interrupted while it waits for the device.
        """
        plan = self.scheduler.plan(self._clock.now())
        self._idle = plan is None and not self._in_flight
        if plan is not None:
            self._submit(plan)
            self._commit_down_to(max(self._depth, 1))  # earlier steps, while the model of this one runs
            self._sample()
        self._commit_down_to(self._depth if plan is not None else len(self._in_flight) - 1)
        return self._report()

    def _submit(self, plan: StepPlan) -> None:
        pending = self._attempt(lambda: self._executor.submit(plan))
        if pending is not None:
            self._in_flight.append(pending)

    def _sample(self) -> None:
        """Dispatch the sampler of the newest step: every token that its rows' masks depend on is known by now."""
        if self._in_flight:
            self._attempt(self._in_flight[-1].sample)

    def _commit_down_to(self, count: int) -> None:
        """Commit the oldest steps until at most `count` are in flight."""
        while len(self._in_flight) > max(count, 0):
            result = self._attempt(self._in_flight.popleft().wait)
            if result is not None:
                record = self.scheduler.commit(result, self._clock.now())
                self._show(record)
                self._events += record.events

    def _report(self) -> list[SequenceOutput]:
        """Events become outputs; a stop string is found only now that there is text."""
        if outside := self.scheduler.drain_events():
            self._show(StepRecord(outside, self._clock.now()))
            self._events += outside
        events, self._events = self._events, []
        now = self._clock.now()
        outputs = self._outputs.process(events, now)
        for sequence in self._outputs.stopped():
            self.scheduler.finish(sequence, FinishReason.STOP, now)
        for output in outputs:
            if output.finish_reason is not None:
                self._forget(output.request_id)
        kept, self._kept = self._kept, []
        return kept + outputs

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """What `call` returns. None if it fails: what ran ends with the error, a clean executor serves the rest."""
        try:
            return call()
        except BaseException as error:
            self._in_flight.clear()
            self.scheduler.forget_steps()
            now = self._clock.now()
            for sequence in self.scheduler.live():
                if sequence.slot >= 0 or sequence.num_pending:
                    self.scheduler.finish(sequence, FinishReason.ERROR, now, f"{type(error).__name__}: {error}")
            self.scheduler.blocks.drop_prefixes()
            self.scheduler.blocks.tiers.reset()
            self._executor.reset()
            if not isinstance(error, Exception):
                raise
            return None

    def _show(self, record: StepRecord) -> None:
        for observer in self.observers:
            observer.observe(record)

    def _forget(self, request_id: str) -> None:
        siblings = self._live.get(request_id)
        if siblings is not None and all(s.finished for s in siblings):
            del self._live[request_id]

    # --- between steps ----------------------------------------------------------------------------------------

    def give_back(self, outputs: list[SequenceOutput]) -> None:
        """Hand back outputs that belong to another caller; the next step returns them first."""
        self._kept += outputs

    def replace_executor(self, executor: Executor) -> None:
        """Drive another executor from the next step on: one that records, say, around the one there was."""
        assert not self._in_flight, "a step is in flight"
        self._executor = executor

    def drain(self) -> None:
        """Commit what is in flight and plan nothing new: then weights can change. Outputs come with the next step."""
        self._commit_down_to(0)
