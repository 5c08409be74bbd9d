"""The scheduler: which sequences run in the next step, with how many tokens, in which bucket.

`plan(now)` packs a step; `commit(result, now)` takes in what the oldest step in flight brought. In between the
scheduler plans ahead on what it knows (see `core.sequence`), so that the device never waits for the host. A plan is
plain data; the sequences behind it stay here, in `in_flight`.

Three small objects decide, and can be replaced:

    BatchPolicy     when sequences may be admitted, how much a step takes    sched/policies/
    Ordering        which sequence is next                                   sched/orderings/
    VictimPolicy    which sequence is preempted when blocks run out          sched/victims.py

To follow `plan`, read these in turn:

    Draft           a step while it is packed                                sched/draft.py
    Packer          fills it: decodes, then chunks of prompts                sched/packer.py
    Preempter       frees blocks for it                                      sched/preemption.py
    chunking        how many tokens of a prompt go into one step             sched/chunking.py
    Roster          which sequences wait and run; admit, preempt, finish     sched/roster.py
    BlockManager    their KV blocks                                          cache/block_manager.py

The other parts:

    QueueBounds     how much may wait                                        sched/queue_bounds.py
    TenantLedger    what each tenant may queue, and hold at most             sched/tenant_ledger.py
    Shares          what is its own, and taken back by preemption            sched/shares.py
    TtftForecasts   when a first token is expected                           sched/ttft_forecasts.py
    Journal         why each step was as it was                              sched/journal.py
"""

from collections import deque
from collections.abc import Collection
from math import isnan

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.errors import NonFiniteLogits
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, token_sampled
from jaxserve.core.plan import NO_BUCKET, NO_TOKEN, Admitted, StepPlan, StepResult
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import FinishReason, Sequence, Status
from jaxserve.core.step_record import Occupancy, ScheduledStep, StepRecord
from jaxserve.core.tenants import Tenants
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.draft import Draft, explain, record
from jaxserve.sched.forecast import Forecast
from jaxserve.sched.journal import Journal
from jaxserve.sched.orderings import OrderingContext, make_ordering
from jaxserve.sched.packer import Packer
from jaxserve.sched.policies import PolicyContext, make_policy
from jaxserve.sched.policies.policy import Load
from jaxserve.sched.preemption import Preempter
from jaxserve.sched.queue_bounds import QueueBounds
from jaxserve.sched.roster import Roster
from jaxserve.sched.shares import Shares
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.ttft_forecasts import TtftForecasts
from jaxserve.sched.victims import VictimPolicy, YoungestFirst


class Scheduler:
    """Plans steps over the live sequences. `core.sequence` says which part of it writes which field."""

    def __init__(
        self,
        config: SchedulerConfig,
        buckets: BucketTable,
        blocks: BlockManager,
        *,
        costs: StepCosts | None = None,
        tenants: Tenants | None = None,
        victims: VictimPolicy | None = None,
    ) -> None:
        self._config, self._buckets, self._blocks = config, buckets, blocks
        self.costs = costs or StepCosts()
        self.journal = Journal(config.journal_steps)
        self._policy = make_policy(PolicyContext(config, buckets, self.costs))
        self._ledger = ledger = TenantLedger(tenants or Tenants(), config, blocks)
        self._ordering = make_ordering(OrderingContext(config, buckets, self.costs, ledger.tenants))
        max_preemptions = 0 if buckets.aligned_chunk else config.max_preemptions
        fair, capacity, slots = config.ordering == "fair", blocks.pool.capacity, config.max_num_seqs
        self._shares = shares = Shares(ledger.tenants, fair=fair, blocks=capacity, slots=slots)
        self._roster = roster = Roster(self._ordering, shares, blocks, slots, max_preemptions)
        self.bounds = QueueBounds(config, roster.waiting, ledger.tenants)
        forecast = Forecast(config, buckets, self.costs, self._policy)
        self._forecasts = TtftForecasts(config, roster, ledger, blocks, self.costs, forecast)
        preempter = Preempter(config, roster, ledger, shares, blocks, victims or YoungestFirst(blocks), self.journal)
        self._packer = Packer(config, buckets, roster, ledger, shares, blocks, preempter)
        self.expects_more = False
        """More requests may come, so that a policy may wait to fill a batch. False: all requests have been added."""
        self.in_flight: deque[ScheduledStep] = deque()
        """Steps that are planned and not committed, the oldest first; for others to read."""
        self._events: list[Event] = []
        self._arrivals = 0
        self._step = 0

    # --- what can be asked ------------------------------------------------------------------------------------

    @property
    def blocks(self) -> BlockManager:
        return self._blocks

    @property
    def num_waiting(self) -> int:
        return len(self._roster.waiting)

    @property
    def num_running(self) -> int:
        return len(self._roster.running)

    @property
    def has_work(self) -> bool:
        """A sequence waits or runs, blocks are moved between tiers, or an event has not been reported."""
        return bool(self._roster.waiting or self._roster.running or self._events or self._blocks.tiers.busy)

    @property
    def running(self) -> Collection[Sequence]:
        return self._roster.running.keys()

    @property
    def waiting(self) -> Collection[Sequence]:
        return self._roster.waiting.sequences

    @property
    def config(self) -> SchedulerConfig:
        return self._config

    @property
    def max_num_seqs(self) -> int:
        return self._config.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return self._config.max_num_batched_tokens

    @property
    def tenants(self) -> Tenants:
        return self._ledger.tenants

    def live(self) -> list[Sequence]:
        """All running and waiting sequences."""
        return [*self._roster.running, *self._roster.waiting]

    def wake_s(self, now: float) -> float | None:
        """When to plan again after a plan of None if no request comes or ends and no step is committed; None: never."""
        return self._policy.wake_s(self._load(now))

    # --- coming and going -------------------------------------------------------------------------------------

    def add(self, sequences: list[Sequence], now: float) -> None:
        """Queue the sequences of one request, all or none.

        Raises:
          QueueFull, TooBusy: a waiting queue or a rate is at its bound, or the first token would come too late.
          PromptTooLong, RequestTooLarge: it is over its tenant's share of the blocks.
          InvalidParameter: more sequences than may ever wait.
        """
        self.bounds.check(sequences)
        for i, sequence in enumerate(sequences, self._arrivals + 1):
            sequence.arrival, sequence.queued_s = i, now
            self._ledger.resolve(sequence)
        tenant = sequences[0].tenant
        self._ledger.check(sequences, self._roster.waiting.count(tenant), now)
        self._forecasts.forecast(sequences[0], now)
        self._arrivals += len(sequences)
        self._ledger.joined(sequences, now)
        for sequence in sequences:
            self._roster.waiting.push(sequence)
            self.journal.queued(sequence, now)

    def finish(self, sequence: Sequence, reason: FinishReason, now: float, error: str | None = None) -> None:
        """End a sequence from outside (abort, a stop string, an error): its blocks and slot are free at once.

        A step in flight may still write to its blocks. Steps run in order, so their next holder writes later.
        """
        if not sequence.finished:
            self._end(sequence, reason, now)
            self._events.append(Finished(sequence, reason, error))

    def forget_steps(self) -> None:
        """A step failed: those in flight will not be committed."""
        self.in_flight.clear()
        self.costs.lost()
        self.journal.lost()

    def drain_events(self) -> list[Event]:
        """Preemptions and calls of `finish` since the last call."""
        events, self._events = self._events, []
        return events

    # --- the step ---------------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run before a step in flight is committed.

        A step may have no rows: only blocks to move between tiers, or only moves in progress to wait for.
        """
        load = self._load(now)
        self._ordering.refresh(load)
        self._shares.refresh(self._roster.running, self._ledger.active)
        draft = Draft(now, self._policy.limits(load))
        self._packer.pack(draft)
        if draft.at_limit:
            self._ordering.held_back(draft.at_limit, self._roster.waiting.tenants)
        explain(draft, self._roster, self._config.max_num_seqs, self.journal)
        self._events += [self._preempted_event(sequence) for sequence in draft.preempted]
        plan = self._plan_of(draft)
        if plan is None:
            return None
        step = ScheduledStep(
            plan, (*draft.decoding, *draft.chunks), tuple(draft.admitted), tuple(draft.preempted), now,
            Occupancy(len(self._roster.running), self._roster.waiting.counts(), self._blocks.usage),
        )  # fmt: skip
        self.in_flight.append(step)
        if plan.bucket.tokens:
            self.costs.planned(plan, now)
        self.journal.planned(record(step, self._blocks))
        self._policy.planned(step)
        self._ordering.planned(step)
        return plan

    def _plan_of(self, draft: Draft) -> StepPlan | None:
        """The draft with its bucket and the moves that it caused; None if there is nothing to do."""
        moves = self._blocks.tiers.take_moves()
        rows = bool(draft.decodes or draft.prefills)
        if not rows and not moves and not self._blocks.tiers.waits_for_disk:
            return None
        self._step += 1
        return StepPlan(
            self._step,
            tuple(draft.decodes),
            tuple(draft.prefills),
            self._buckets.fit(len(draft.decodes), sum(row.length for row in draft.prefills)) if rows else NO_BUCKET,
            tuple([_admitted(sequence) for sequence in draft.admitted]),
            tuple(draft.freed_slots),
            moves,
        )

    def _preempted_event(self, sequence: Sequence) -> Preempted:
        parked = self._blocks.tiers.parked(sequence)
        return Preempted(sequence, parked.tier if parked else None)

    def commit(self, result: StepResult, now: float) -> StepRecord:
        """Take in what the oldest step in flight brought. Tokens of sequences that have ended meanwhile are dropped.

        A sequence whose logits are not finite ends with an error, and what it computed is not shared any more.
        """
        step = self.in_flight.popleft()
        self.journal.committed(now)
        if step.plan.bucket.tokens:
            self.costs.committed(now)
        events = self.drain_events()
        self._blocks.tiers.settle(result.moved)
        tokens: list[int] = result.tokens.tolist()
        counts: list[int] = result.counts.tolist()
        end = 0
        for i, (sequence, row, count) in enumerate(zip(step.sequences, step.plan.rows, counts, strict=True)):
            begin, end = end, end + count
            if row.wants.token:
                sequence.num_pending -= 1
            if sequence.status is Status.FINISHED:
                continue
            side = result.side.get(i) if result.side else None
            if side is not None and side.prompt_logprobs:
                if any(isnan(scored.logprob) for scored in side.prompt_logprobs):
                    events.append(self._not_finite(sequence, now))
                    continue
                events.append(PromptScored(sequence, row.start + 1, tuple(side.prompt_logprobs)))
            if count:
                for at in range(begin, end):
                    if tokens[at] == NO_TOKEN:
                        events.append(self._not_finite(sequence, now))
                        break
                    logprobs = side.logprobs[at - begin] if side is not None and side.logprobs else None
                    finish = self._append(sequence, tokens[at], now)
                    events.append(token_sampled((sequence, tokens[at], logprobs, finish)))
                    if finish is not None:
                        break
            elif row.start + row.length >= sequence.max_len:  # max_tokens = 0: only the prompt was wanted
                self._end(sequence, FinishReason.LENGTH, now)
                events.append(Finished(sequence, FinishReason.LENGTH))
        return StepRecord(events, now, step, self.costs.last_s, self.costs.last_predicted_s)

    def _load(self, now: float) -> Load:
        waiting = self._roster.waiting.sequences
        return Load(
            now=now,
            running=self._roster.running.keys(),
            waiting=waiting,
            oldest_s=next(iter(waiting)).queued_s if waiting else now,
            expects_more=self.expects_more,
            kv_usage=self._blocks.usage,
        )

    # --- ends -------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, token: int, now: float) -> FinishReason | None:
        """Take in a sampled token. Returns why the sequence ends with it, if it does."""
        sequence.tokens.append(token)
        if sequence in self.journal.filling:
            self.journal.filled(sequence, now)
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            self.journal.first_token(sequence, now)
            self._forecasts.observe(sequence, now)
        reason = None
        if token in sequence.stop_ids:  # the sampler bans these before `min_tokens`
            reason = FinishReason.STOP
        elif len(sequence.tokens) >= sequence.max_len:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._end(sequence, reason, now)
        return reason

    def _not_finite(self, sequence: Sequence, now: float) -> Finished:
        error = NonFiniteLogits()
        self._blocks.forget_prefix(sequence)
        self._end(sequence, FinishReason.ERROR, now)
        return Finished(sequence, FinishReason.ERROR, f"{type(error).__name__}: {error}", nonfinite=True)

    def _end(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        self._roster.finish(sequence, reason, now)
        self._ledger.ended(sequence)
        self.journal.ended(sequence, now)


def _admitted(sequence: Sequence) -> Admitted:
    request = sequence.request
    return Admitted(
        sequence.slot, request.id, sequence.index, request.params, sequence.seed, sequence.num_prompt,
        tuple(sequence.tokens), sequence.stop_ids,
    )  # fmt: skip
