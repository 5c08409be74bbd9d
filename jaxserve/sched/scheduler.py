"""Packs steps: who runs in the next one, with how many tokens, in which bucket.

`plan(now)` packs a step; `commit(plan, result, now)` takes in what it brought. In between the step may still be
running: the scheduler plans ahead on what it knows (see `core.sequence`), so that the device never waits for the host.

Three small objects decide, the scheduler only packs:

    BatchPolicy    when sequences may join, how much a step takes      sched/policies/
    Ordering       who is next                                         sched/orderings/
    VictimPolicy   who gives way when blocks run out                   sched/victims.py

A preempted sequence gives its blocks back and waits again, at its old place. One that was preempted `max_preemptions`
times comes back only when all the blocks it can ever need are free, and holds them: nothing thrashes, everything ends.
"""

import heapq
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.config import SchedulerConfig
from jaxserve.core.decisions import Chunk, Decision, Reason
from jaxserve.core.errors import QueueFull, TooBusy
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, TokenSampled
from jaxserve.core.plan import NO_BUCKET, Row, StepPlan, StepResult, Tier, TokenLogprobs
from jaxserve.core.sequence import FinishReason, Sequence, Status
from jaxserve.core.tenants import Tenants
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.forecast import Forecast
from jaxserve.sched.journal import Journal
from jaxserve.sched.load import Load
from jaxserve.sched.long_prompts import LongPromptGuard
from jaxserve.sched.orderings import OrderingContext, make_ordering
from jaxserve.sched.packing import fill_to_edge
from jaxserve.sched.policies import PolicyContext, make_policy
from jaxserve.sched.policies.policy import Mode, StepLimits
from jaxserve.sched.step_costs import StepCosts
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.victims import Claim, Victim, VictimPolicy, YoungestFirst
from jaxserve.sched.waiting import WaitingQueue

PROMISE = 0.9
"""Share of its objective that a request's predicted first token may take: the rest is for the prediction's error."""
HORIZON = 4.0
"""How far a forecast looks ahead, in objectives."""


@dataclass(slots=True)
class _Draft:
    """A step being packed."""

    now: float
    limits: StepLimits
    decodes: list[Row] = field(default_factory=list[Row])
    prefills: list[Row] = field(default_factory=list[Row])
    admitted: list[Sequence] = field(default_factory=list[Sequence])
    preempted: list[Sequence] = field(default_factory=list[Sequence])
    guard: LongPromptGuard = field(init=False)
    way_for: Sequence | None = None
    """Who waits, and has had others displaced: it alone may join."""
    stalled: bool = False
    """A decode waits for a block."""
    held: dict[Sequence, Reason] = field(default_factory=dict[Sequence, Reason])
    """Who has no row, and why; of those that wait only who was next."""
    passed: set[str] = field(default_factory=set[str])
    """Tenants whose turn or share it is not: the others need not wait for them."""


class Scheduler:
    """The only writer of sequences (blocks aside).

    `aligned_chunk`: chunks end at multiples of this many tokens, one prompt a step, no preemption (deterministic mode).
    """

    expects_more: bool = False
    """More requests may come: a policy that waits for company may wait. Off, what is here is all there will be."""

    def __init__(
        self,
        config: SchedulerConfig,
        buckets: BucketTable,
        blocks: BlockManager,
        aligned_chunk: int | None = None,
        *,
        costs: StepCosts | None = None,
        tenants: Tenants | None = None,
        victims: VictimPolicy | None = None,
    ) -> None:
        self._config = config
        self._buckets = buckets
        self._blocks = blocks
        self._aligned_chunk = aligned_chunk
        self._max_preemptions = 0 if aligned_chunk else config.max_preemptions
        self.costs = costs or StepCosts()
        self._policy = make_policy(PolicyContext(config, buckets, self.costs))
        self._ledger = TenantLedger(tenants or Tenants(), config, blocks)
        self._ordering = make_ordering(OrderingContext(config, buckets, self.costs, self._ledger.tenants))
        self.journal = Journal(config.journal_steps)
        self.forecast = Forecast(config, buckets, self.costs, self._policy)
        self._victims = victims or YoungestFirst(blocks)
        self._waiting = WaitingQueue(self._ordering, self._ledger.standing)
        self._running: dict[Sequence, None] = {}
        self._free_slots = list(range(config.max_num_seqs))
        self._events: list[Event] = []
        self._arrivals = 0
        self._step = 0
        self._prefilled_last = False

    # --- what can be asked ------------------------------------------------------------------------------------

    @property
    def blocks(self) -> BlockManager:
        return self._blocks

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def num_waiting_of(self, tenant: str) -> int:
        return self._waiting.count(tenant)

    @property
    def tenants_active(self) -> list[str]:
        """Tenants that have something waiting or running."""
        return self._ledger.active()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Something waits, runs, is moved between tiers, or has ended and not been told."""
        return bool(self._waiting or self._running or self._events or self._blocks.tiers.busy)

    @property
    def running(self) -> Collection[Sequence]:
        return self._running.keys()

    @property
    def waiting(self) -> Collection[Sequence]:
        return self._waiting.sequences

    @property
    def max_num_seqs(self) -> int:
        return self._config.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return self._config.max_num_batched_tokens

    def has_share(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence would keep its tenant inside its share of the blocks."""
        return self._ledger.may_join(sequence, self._running)

    @property
    def tenants(self) -> Tenants:
        return self._ledger.tenants

    def live(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def wake_s(self, now: float) -> float | None:
        """When to plan again after a plan of None, if nothing comes, ends or is committed before; None: not at all."""
        return self._policy.wake_s(self._load(now))

    # --- coming and going -------------------------------------------------------------------------------------

    def add(self, sequences: list[Sequence], now: float) -> None:
        """Queue the sequences of one request, all or none.

        Raises:
          QueueFull, TooBusy: a waiting queue or a rate is at its bound, or the first token would come too late.
          PromptTooLong, RequestTooLarge: it is over its tenant's share of the blocks.
        """
        if len(self._waiting) + len(sequences) > self._config.max_waiting:
            raise QueueFull(len(self._waiting), self._config.max_waiting)
        for i, sequence in enumerate(sequences, self._arrivals + 1):
            sequence.arrival, sequence.queued_s = i, now
            self._ledger.resolve(sequence)
        tenant = sequences[0].tenant
        self._ledger.check(sequences, self._waiting.count(tenant), now)
        self._promise(sequences[0], now)
        self._arrivals += len(sequences)
        active = self._ledger.active()
        if tenant not in active:
            self._ordering.returned(tenant, active)
        self._ledger.joined(tenant, len(sequences))
        for sequence in sequences:
            self._waiting.push(sequence)
            self.journal.queued(sequence, now)

    def _promise(self, sequence: Sequence, now: float) -> None:
        """Forecast its first token; with `admission = "slo"` TooBusy when that is too late to be worth queueing for."""
        slo = sequence.ttft_slo_s
        if slo is None or not self.costs.ready:
            return
        waited = now - sequence.request.arrival_s if sequence.request.arrival_s else 0.0
        sequence.forecast_s = self._forecast_s(sequence, now, HORIZON * slo)
        expected = waited + sequence.forecast_s * self.forecast.quantile(0.5)
        sequence.predicted_ttft_s = expected
        sequence.predicted_p90_s = waited + sequence.forecast_s * self.forecast.quantile(0.9)
        if self._config.admission == "slo" and expected > PROMISE * slo:
            wait_s = max(expected - PROMISE * slo, self.costs.last_s)
            raise TooBusy(
                f"the first token would come after {expected:.2f} s and the objective is {slo:g} s: "
                f"try again in {wait_s:.2f} s",
                "slo",
                wait_s,
            )

    def _forecast_s(self, sequence: Sequence, now: float, horizon_s: float) -> float:
        """Seconds from now to its first token: what is under way, what goes before it, and its own prompt."""
        ahead = [s.num_uncomputed for s in self._begun() if self._precedes(s, sequence)]
        ahead += [s.num_uncomputed for s in self._waiting if self._precedes(s, sequence)]
        decodes = [s.num_computed for s in self._running if s.decoding]
        own = sequence.num_prompt - self._blocks.num_cached(sequence)
        outputs = self._ledger.outputs.mean(default=float(max(sequence.max_len - sequence.num_prompt, 1)))
        return self.costs.under_way_s(now) + self.forecast.first_token_s(
            own, ahead, len(decodes), sum(decodes), max(outputs, 1.0), horizon_s
        )

    def finish(self, sequence: Sequence, reason: FinishReason, now: float, error: str | None = None) -> None:
        """End a sequence from outside (abort, a stop string, an error): its blocks and slot are free at once.

        A step under way may still write to its blocks; steps run in order, so whoever is given them writes later.
        """
        if not sequence.finished:
            self._end(sequence, reason, now)
            self._events.append(Finished(sequence, reason, error))

    def forget_steps(self) -> None:
        """A step failed: those that were planned will not be committed."""
        self.costs.lost()
        self.journal.lost()

    def drain_events(self) -> list[Event]:
        """What happened outside `commit` since the last call: preemptions and outside finishes."""
        events, self._events = self._events, []
        return events

    # --- the step ---------------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run before a step under way is committed.

        A step may have no rows: only blocks to move between tiers, or only moves under way to wait for.
        """
        load = self._load(now)
        self._ordering.refresh(load)
        self._ledger.take_stock(self._running)
        draft = _Draft(now, self._policy.limits(load))
        self._pack(draft)
        self._explain(draft)
        self._events.extend(self._preempted_event(sequence) for sequence in draft.preempted)
        moves = self._blocks.tiers.take_moves()
        rows = bool(draft.decodes or draft.prefills)
        if not rows and not moves and not self._blocks.tiers.waits_for_disk:
            return None
        self._step += 1
        plan = StepPlan(
            self._step,
            tuple(draft.decodes),
            tuple(draft.prefills),
            self._buckets.fit(len(draft.decodes), sum(row.length for row in draft.prefills)) if rows else NO_BUCKET,
            tuple(draft.admitted),
            tuple(draft.preempted),
            moves,
        )
        if rows:
            self.costs.planned(plan, now)
        self.journal.planned(self._decision(plan, now))
        self._policy.planned(plan)
        self._ordering.planned(plan)
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Take in a step's tokens. Rows of sequences that ended meanwhile are dropped."""
        self.journal.committed(now)
        if plan.bucket.tokens:
            self.costs.committed(now)
        events = self.drain_events()
        self._blocks.tiers.settle(result.moved)
        tokens: list[int] = result.tokens.tolist()
        logprobs, scored = result.logprobs or {}, result.prompt_logprobs or {}
        for i, row in enumerate((*plan.decodes, *plan.prefills)):
            sequence = row.sequence
            if row.samples:
                sequence.num_pending -= 1
            if sequence.status is Status.FINISHED:
                continue
            if i in scored:
                events.append(PromptScored(sequence, row.start + 1, tuple(scored[i])))
            if row.samples:
                events.append(self._append(sequence, tokens[i], logprobs.get(i), now))
            elif row.start + row.length >= sequence.max_len:  # max_tokens = 0: only the prompt was wanted
                self._end(sequence, FinishReason.LENGTH, now)
                events.append(Finished(sequence, FinishReason.LENGTH))
        return events

    # --- packing ----------------------------------------------------------------------------------------------

    def _load(self, now: float) -> Load:
        waiting = self._waiting.sequences
        return Load(
            now=now,
            running=self._running.keys(),
            waiting=waiting,
            oldest_s=next(iter(waiting)).queued_s if waiting else now,
            expects_more=self.expects_more,
            kv_usage=self._blocks.usage,
        )

    def _pack(self, draft: _Draft) -> None:
        self._make_way(draft)
        match draft.limits.mode:
            case Mode.MIXED if self._buckets.mixes:
                self._pack_decodes(draft)
                self._pack_prefills(draft)
            case Mode.PREFILL_FIRST:
                self._pack_prefills(draft)
                if not draft.prefills:
                    self._pack_decodes(draft)
            case _:
                self._pack_in_turn(draft)

    def _pack_in_turn(self, draft: _Draft) -> None:
        if not self._prefilled_last:
            self._pack_prefills(draft)
        if not draft.prefills:
            self._pack_decodes(draft)
        if not draft.decodes and not draft.prefills:
            self._pack_prefills(draft)
        self._prefilled_last = bool(draft.prefills)

    def _pack_decodes(self, draft: _Draft) -> None:
        block_size, rows = self._blocks.block_size, draft.decodes
        self._grow_decodes(draft)
        for sequence in self._running:
            if not sequence.decoding:
                continue  # still in its prompt
            start = sequence.num_computed
            if start + 1 >= sequence.max_len or start == len(sequence.blocks) * block_size:
                continue  # its last token is being sampled, or it waits for a block
            sequence.num_computed = start + 1
            sequence.num_pending += 1
            if start % block_size <= 1:  # a block has filled, and its tokens are known by now
                self._blocks.note_computed(sequence)
            rows.append(Row(sequence, start, 1, True))

    def _grow_decodes(self, draft: _Draft) -> None:
        """Blocks for the decodes that have filled theirs; before any row is made, so that no victim has one."""
        block_size = self._blocks.block_size
        going = [s for s in self._running if s.decoding and s.num_computed + 1 < s.max_len]
        full = [s for s in going if s.num_computed == len(s.blocks) * block_size]
        moves = len(full) < len(going)
        for sequence in full:
            if sequence.status is not Status.RUNNING:
                continue
            if self._make_room(sequence, sequence.num_computed + 1, draft, must=not moves):
                moves = True
            elif sequence.status is Status.RUNNING:
                draft.stalled = True
                draft.held[sequence] = Reason.BLOCKS

    def _make_room(self, sequence: Sequence, tokens: int, draft: _Draft, must: bool = True) -> bool:
        """Grow a running sequence, preempting until it fits; False if it is itself preempted, or has to wait."""
        while not self._grow(sequence, tokens):
            candidates = self._candidates(sequence, tokens)
            if not candidates:
                return False
            missing = self._blocks.blocks_for(tokens) - len(sequence.blocks) - self._blocks.pool.num_free
            victim = self._victims.choose(self._claim(sequence, candidates, missing, draft, must))
            if victim is None:
                return False
            self._preempt(victim, sequence, draft)
            if victim.sequence is sequence:
                return False
        return True

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for its first `tokens` tokens, within its tenant's share; False without them."""
        blocks = self._blocks.blocks_for(tokens)
        if blocks > len(sequence.blocks) and not self._ledger.within_cap(sequence, blocks, self._running):
            return False
        return self._blocks.grow(sequence, tokens)

    def _candidates(self, sequence: Sequence, tokens: int) -> tuple[Sequence, ...]:
        """Who may be preempted so that it can grow: of its own tenant only, if it is the share that is short."""
        ledger, running = self._ledger, self._running
        inside = ledger.within_cap(sequence, self._blocks.blocks_for(tokens), running)
        candidates = tuple(
            s
            for s in running
            if s.preemptions < self._max_preemptions
            and not self._blocks.tiers.loading(s)
            and (inside or s.tenant == sequence.tenant)
            and ledger.may_yield(sequence, s, running)
        )
        borrowers = tuple(s for s in candidates if s.tenant != sequence.tenant)
        return borrowers if borrowers and ledger.standing(sequence.tenant) == 0 else candidates

    def _make_way(self, draft: _Draft) -> None:
        """Who is next of those that wait may displace running ones that would come after it, before any row is made."""
        head = self._waiting.first()
        if head is None or not self._config.preempt_for_admission or not self._may_come(head, draft):
            return
        missing = self._missing(head, draft)
        while missing > 0 or not self._free_slots:
            candidates = tuple(s for s in self._running if self._may_displace(head, s))
            if not candidates or sum(len(s.blocks) for s in candidates) < missing:
                return  # even all of them would not do
            victim = self._victims.choose(self._claim(head, candidates, missing, draft, must=False))
            if victim is None:
                return
            self._preempt(victim, head, draft)
            draft.way_for = head
            missing = self._missing(head, draft)

    def _may_come(self, head: Sequence, draft: _Draft) -> bool:
        """Nothing but blocks and a slot keeps it from joining."""
        joins = draft.limits.admit > 0 and not head.num_pending
        return joins and self._ledger.may_join(head, self._running) and self._blocks.tiers.ready(head)

    def _may_displace(self, head: Sequence, sequence: Sequence) -> bool:
        return (
            sequence.preemptions < self._max_preemptions
            and self._precedes(head, sequence)
            and self._ledger.may_displace(head, sequence, self._running)
        )

    def _missing(self, head: Sequence, draft: _Draft) -> int:
        chunk = min(draft.limits.chunk, draft.limits.tokens)
        return self._blocks.shortage(head, chunk, self._reserve(head), head.params.prompt_logprobs is None)

    def _reserve(self, sequence: Sequence) -> int:
        """Tokens that it must have blocks for from the start: it has given way often enough."""
        return sequence.max_len if sequence.preemptions >= self._max_preemptions else 0

    def _claim(
        self, sequence: Sequence, candidates: tuple[Sequence, ...], missing: int, draft: _Draft, must: bool
    ) -> Claim:
        return Claim(sequence, candidates, missing, must, draft.now, tuple(self._running))

    def _preempt(self, victim: Victim, claimant: Sequence, draft: _Draft) -> None:
        """It has no row in this plan: what it holds is saved before the rows run."""
        sequence = victim.sequence
        draft.preempted.append(sequence)
        draft.held[sequence] = Reason.BLOCKS
        self.journal.displaced(sequence, claimant, victim.fate, victim.prices)
        self._blocks.park(sequence, victim.fate.tier)
        self._release(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.decoding = False
        sequence.preemptions += 1
        self._waiting.push(sequence)

    def _preempted_event(self, sequence: Sequence) -> Preempted:
        parked = self._blocks.tiers.parked(sequence)
        return Preempted(sequence, parked.tier if parked else None)

    def _pack_prefills(self, draft: _Draft) -> None:
        """Chunks of the prompts that are under way and of those that wait, merged in the ordering's order."""
        limits = draft.limits
        budget = min(limits.tokens - len(draft.decodes), self._buckets.max_prefill_tokens)
        begun = self._begun()
        draft.guard = LongPromptGuard(self._config, begun, budget)
        lengths: dict[Sequence, int] = {}
        short = bool(draft.preempted) or draft.stalled  # of blocks: nobody joins in this step
        places = limits.admit if not short else int(draft.way_for is not None)
        while budget > 0 and len(lengths) < self._buckets.prefill_rows:
            head = self._waiting.first(draft.passed) if places > len(draft.admitted) else None
            if begun and (head is None or not self._precedes(head, begun[-1])):
                sequence = begun.pop()
                if sequence.status is not Status.RUNNING:
                    continue  # it has given way a moment ago
                chunk = self._chunk(sequence, budget, draft, alone=not lengths)
                if chunk and self._grow_prefill(sequence, chunk, draft, alone=not lengths):
                    lengths[sequence] = chunk
                    budget -= chunk
                    draft.guard.takes(sequence)
                elif chunk:
                    places = 0  # it waits for blocks: nobody may take them away from it
                    draft.held.setdefault(sequence, Reason.BLOCKS)
                else:
                    draft.held[sequence] = Reason.BUDGET
            elif head is None:
                break
            elif not draft.guard.allows(head):
                draft.held[head] = Reason.BUDGET
                draft.passed.add(head.tenant)
            elif not self._ledger.may_join(head, self._running):
                draft.held[head] = Reason.SHARE
                draft.passed.add(head.tenant)
            elif self._admit(head, budget, draft, alone=not lengths):
                if self._blocks.tiers.loading(head):
                    draft.held[head] = Reason.TIER
                else:
                    draft.guard.takes(head)
                    lengths[head] = self._chunk(head, budget, draft, alone=True)
                    budget -= lengths[head]
            else:
                places = 0
            if draft.preempted and (draft.way_for is None or draft.way_for.status is Status.RUNNING):
                places = 0
        if lengths and self._config.fill_buckets and not self._aligned_chunk and not limits.whole:
            fill_to_edge(lengths, budget, self._buckets, self._blocks)
        for sequence in begun:
            draft.held.setdefault(sequence, Reason.BUDGET)
        draft.prefills += [self._prefill_row(sequence, length) for sequence, length in lengths.items()]

    def _explain(self, draft: _Draft) -> None:
        """Exactly one reason for everybody without a row."""
        held, joined = draft.held, draft.limits.admit > 0
        head = self._waiting.first(draft.passed) if joined else None
        if head is not None and head not in held:
            short = draft.preempted or draft.stalled
            full = draft.limits.admit < self._config.max_num_seqs and len(draft.admitted) >= draft.limits.admit
            held[head] = Reason.BLOCKS if short else Reason.GATE if full else Reason.BUDGET
        if not draft.prefills:
            for sequence in self._begun():
                held.setdefault(sequence, Reason.BUDGET)
        chunks = [row.sequence for row in draft.prefills]
        for sequence in chunks:
            held.pop(sequence, None)
        others = Reason.ORDER if joined else Reason.GATE
        self.journal.packed(draft.now, held, others, chunks, len(self._waiting))

    def _decision(self, plan: StepPlan, now: float) -> Decision:
        pool, tiers = self._blocks.pool, self._blocks.tiers
        return Decision(
            step=plan.step,
            planned_s=now,
            bucket=plan.bucket,
            decode_rows=len(plan.decodes),
            chunks=tuple([Chunk(row.sequence.id, row.start, row.length) for row in plan.prefills]),
            admitted=tuple([sequence.id for sequence in plan.admitted]),
            moves=dict(Counter(f"{move.source}>{move.target}" for move in plan.moves)) if plan.moves else {},
            blocks_held=pool.capacity - pool.num_free,
            blocks_cached=pool.num_cached,
            blocks=pool.capacity,
            host_blocks=tiers.used(Tier.HOST),
            disk_blocks=tiers.used(Tier.DISK),
        )

    def _begun(self) -> list[Sequence]:
        """Running sequences still in their prompts, the next one last; not those whose blocks are being loaded."""
        tiers = self._blocks.tiers
        begun = [s for s in self._running if not s.decoding and s.num_uncomputed and not tiers.loading(s)]
        begun.sort(key=self._place, reverse=True)
        return begun

    def _place(self, sequence: Sequence) -> tuple[float, float, float, int]:
        ordering, tenant = self._ordering, sequence.tenant
        return self._ledger.standing(tenant), ordering.rank(tenant), ordering.key(sequence), sequence.arrival

    def _precedes(self, one: Sequence, other: Sequence) -> bool:
        return self._place(one) < self._place(other)

    def _chunk(self, sequence: Sequence, budget: int, draft: _Draft, alone: bool) -> int:
        """Tokens of its prompt in this step. `alone`: nobody is in the step's prefill yet, so it may be split."""
        if not draft.guard.allows(sequence):
            return 0
        left, limits = sequence.num_uncomputed, draft.limits
        wanted = draft.guard.cap(sequence, min(left, limits.chunk))
        chunk = min(wanted, budget)
        if limits.whole and not alone and chunk < wanted:
            return 0
        if self._aligned_chunk:
            chunk = min(chunk, self._aligned_chunk - sequence.num_computed % self._aligned_chunk)
        return chunk

    def _grow_prefill(self, sequence: Sequence, chunk: int, draft: _Draft, alone: bool) -> bool:
        tokens = sequence.num_computed + chunk
        if alone and not draft.decodes:  # nothing else moves: somebody has to give way
            return self._make_room(sequence, tokens, draft)
        return self._grow(sequence, tokens)

    def _admit(self, sequence: Sequence, budget: int, draft: _Draft, alone: bool) -> bool:
        """Give a waiting sequence a slot and blocks for its first chunk; False, and it waits on."""
        limits, parked = draft.limits, self._blocks.tiers.parked(sequence)
        if not self._blocks.tiers.ready(sequence):
            draft.held[sequence] = Reason.TIER
            return False
        draft.held[sequence] = Reason.BUDGET
        if not self._free_slots or sequence.num_pending:
            return False
        uncomputed = sequence.num_uncomputed - (parked.tokens if parked else 0)
        if limits.whole and not alone and uncomputed > min(limits.chunk, budget):
            return False
        share = sequence.params.prompt_logprobs is None
        shared = self._blocks.admit(sequence, min(limits.chunk, budget), self._reserve(sequence), share)
        if shared is None:
            draft.held[sequence] = Reason.BLOCKS
            return False
        del draft.held[sequence]
        self._waiting.remove(sequence)
        self._running[sequence] = None
        sequence.status = Status.RUNNING
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.num_computed = shared
        if parked is None:
            sequence.num_cached = shared
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = draft.now
        draft.admitted.append(sequence)
        return True

    def _prefill_row(self, sequence: Sequence, length: int) -> Row:
        start = sequence.num_computed
        sequence.num_computed = start + length
        ends = sequence.num_computed == len(sequence.tokens)
        samples = ends and len(sequence.tokens) < sequence.max_len
        if samples:
            sequence.decoding = True
            sequence.num_pending += 1
        self._blocks.note_computed(sequence)
        return Row(sequence, start, length, samples)

    # --- ends -------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None, now: float) -> TokenSampled:
        sequence.tokens.append(token)
        if sequence in self.journal.filling:
            self.journal.filled(sequence, now)
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            self.journal.first_token(sequence, now)
            if sequence.forecast_s:
                self.forecast.note(sequence.forecast_s, now - sequence.queued_s)
        reason = None
        if token in sequence.stop_ids and sequence.num_outputs > sequence.params.min_tokens:
            reason, sequence.stop_token = FinishReason.STOP, token
        elif len(sequence.tokens) >= sequence.max_len:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._end(sequence, reason, now)
        return TokenSampled(sequence, token, logprobs, reason)

    def _end(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        if sequence.status is Status.RUNNING:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
            self._blocks.tiers.forget(sequence)
        self._ledger.ended(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        sequence.finished_s = now
        self.journal.ended(sequence, now)

    def _release(self, sequence: Sequence) -> None:
        """Give back a running sequence's blocks and slot."""
        self._blocks.free(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        del self._running[sequence]
