"""Makes room when KV blocks run out: which running sequences are preempted, for which claimant.

`Packer` calls these in this order while it packs a step; nothing here calls back:

    for_admission   before any row is made: the first waiting sequence preempts running ones that come after it
    for_decodes     before decode rows are made: blocks for the decodes that have filled theirs
    grow            while prompts are packed: blocks for the next chunk of a prompt

This module says which sequences are candidates, by what is their tenants' own (`sched.shares`); a `VictimPolicy` picks
one of them and says what becomes of its K/V. A preempted sequence gives up its blocks and waits again at its old place
(`Roster.preempt`).
"""

from collections.abc import Iterator

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Reason
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.draft import Draft
from jaxserve.sched.journal import Journal
from jaxserve.sched.roster import Roster
from jaxserve.sched.shares import Shares
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.victims import Claim, VictimPolicy, Wait


class Preempter:
    def __init__(
        self,
        config: SchedulerConfig,
        roster: Roster,
        ledger: TenantLedger,
        shares: Shares,
        blocks: BlockManager,
        victims: VictimPolicy,
        journal: Journal,
    ) -> None:
        self._preempts_for_admission = config.preempt_for_admission
        self._step_tokens = config.max_num_batched_tokens
        self._roster, self._ledger, self._shares, self._blocks = roster, ledger, shares, blocks
        self._victims, self._journal = victims, journal

    # --- for a waiting sequence -------------------------------------------------------------------------------

    def for_admission(self, draft: Draft) -> None:
        """Preempt running sequences for the first waiting one, until that one can be admitted.

        With fair shares: if the first one may take nothing back, for the first one of the next tenant.
        """
        if not self._preempts_for_admission or draft.limits.admit <= 0:
            return
        for head in self._heads():
            if head.num_pending or not self._blocks.tiers.ready(head):
                return
            if self._make_room_for(head, draft) or not self._shares.fair or self._roster.has_slot:
                return

    def _heads(self) -> Iterator[Sequence]:
        """The first waiting sequence of each tenant that is not at a limit of its own, in the ordering's order.

        Those after the first only if their turn comes within a step's tokens: else the first tenant is owed service.
        """
        roster, passed, first = self._roster, set[str](), None
        while (head := roster.waiting.first(passed)) is not None:
            passed.add(head.tenant)
            if self._ledger.may_join(head, roster.running):
                first = first or head
                if head is first or roster.lead(first.tenant, head.tenant) <= self._step_tokens:
                    yield head

    def _make_room_for(self, head: Sequence, draft: Draft) -> bool:
        """Preempt until a waiting sequence can be admitted; False: not even all that it may preempt hold enough."""
        chunk = min(draft.limits.chunk, draft.limits.tokens)
        while (missing := self._roster.shortage(head, chunk)) > 0 or not self._roster.has_slot:
            candidates = self._below_waiting(head, missing > 0)
            if not candidates or sum(len(s.blocks) for s in candidates) < missing:
                return draft.claimant is head
            must = self._shares.fair and missing <= 0  # a slot is lent to be taken back at once
            if self._preempt_one(head, candidates, missing, must, draft) is None:
                return True
            draft.claimant = head
        return True

    def _below_waiting(self, head: Sequence, lacks_blocks: bool) -> tuple[Sequence, ...]:
        """Running sequences that may be preempted so that a waiting one can be admitted."""
        roster, running = self._roster, self._roster.running
        needed = self._blocks.blocks_for(len(head.tokens) + 1)
        borrowed = self._shares.to_take_back(head, needed, running, slot=not roster.has_slot, blocks=lacks_blocks)
        candidates = [s for s in borrowed if self._preemptible(s) and (self._shares.fair or roster.precedes(head, s))]
        for s in self._shares.of_lower_class(head, running):
            if roster.preemptible(s) and roster.precedes(head, s) and s not in candidates:
                candidates.append(s)
        return tuple(candidates)

    def _preemptible(self, sequence: Sequence) -> bool:
        """Whether what a sequence holds may be taken back. With fair shares, any number of times: see `Shares`."""
        return self._roster.preempts if self._shares.fair else self._roster.preemptible(sequence)

    # --- for a running sequence -------------------------------------------------------------------------------

    def for_decodes(self, draft: Draft) -> list[Sequence]:
        """The sequences that decode in this step, each with a block for its next token.

        Without a free block a sequence preempts another one, or is preempted itself, or skips this step.
        """
        size = self._blocks.block_size
        decoding = [s for s in self._roster.running if s.decoding and s.num_computed + 1 < s.max_len]
        full = [s for s in decoding if s.num_computed % size == 0 and s.num_computed == len(s.blocks) * size]
        if not full:
            return decoding
        any_row = len(full) < len(decoding)
        for sequence in full:
            if sequence.status is not Status.RUNNING:
                continue  # it was preempted for one before it
            if self._make_room(sequence, sequence.num_computed + 1, draft, must=not any_row):
                any_row = True
            elif sequence.status is Status.RUNNING:
                draft.stalled = True
                draft.reasons[sequence] = Reason.BLOCKS
        return [s for s in decoding if s.status is Status.RUNNING and s.num_computed < len(s.blocks) * size]

    def grow(self, sequence: Sequence, tokens: int, draft: Draft, *, preempt: bool) -> bool:
        """Blocks for a running sequence's first `tokens` tokens; False without them.

        `preempt`: preempt others until they suffice. Then the sequence may itself be the one that is preempted.
        """
        return self._make_room(sequence, tokens, draft, must=True) if preempt else self._grow(sequence, tokens)

    def _make_room(self, sequence: Sequence, tokens: int, draft: Draft, must: bool) -> bool:
        """Grow, preempting until it fits; False if the sequence is itself preempted or has to wait."""
        while not self._grow(sequence, tokens):
            candidates = self._candidates(sequence, tokens)
            if not candidates:
                return False
            missing = self._blocks.blocks_for(tokens) - len(sequence.blocks) - self._blocks.pool.num_free
            if self._preempt_one(sequence, candidates, missing, must, draft) in (None, sequence):
                return False
        return True

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        blocks = self._blocks.blocks_for(tokens)
        if blocks > len(sequence.blocks) and not self._ledger.within_cap(sequence, blocks, self._roster.running):
            return False
        return self._blocks.grow(sequence, tokens)

    def _candidates(self, sequence: Sequence, tokens: int) -> tuple[Sequence, ...]:
        """Running sequences that may be preempted so that this one can grow.

        Only those of its tenant, if the tenant's cap is what limits it. Those of other tenants before its own, if its
        tenant is within its part.
        """
        running, loading = self._roster.running, self._blocks.tiers.loading
        below_cap = self._ledger.within_cap(sequence, self._blocks.blocks_for(tokens), running)
        candidates = tuple(
            s
            for s in self._shares.for_growth(sequence, running)
            if not loading(s)
            and (self._roster.preemptible(s) if s.tenant == sequence.tenant else below_cap and self._preemptible(s))
        )
        others = tuple(s for s in candidates if s.tenant != sequence.tenant)
        return others if others and self._shares.within(sequence.tenant, 1, running) else candidates

    # --- either -----------------------------------------------------------------------------------------------

    def _preempt_one(
        self, claimant: Sequence, candidates: tuple[Sequence, ...], missing: int, must: bool, draft: Draft
    ) -> Sequence | None:
        """Preempt the policy's choice and return it; None: the claimant waits, since that is cheaper.

        The journal records either, with the prices of all options.
        """
        running = tuple(self._roster.running)
        choice = self._victims.choose(Claim(claimant, candidates, missing, must, draft.now, running))
        if isinstance(choice, Wait):
            self._journal.waited(claimant, choice.spared, choice.prices)
            return None
        victim = choice.sequence
        draft.preempted.append(victim)
        draft.freed_slots.append(victim.slot)
        draft.reasons[victim] = Reason.BLOCKS
        self._journal.preempted(victim, claimant, choice.fate, choice.prices)
        self._roster.preempt(victim, choice.fate.tier)
        return victim
