"""Makes room when KV blocks run out: which running sequences are preempted, for which claimant.

`Packer` calls these in this order while it packs a step; nothing here calls back:

    for_admission   before any row is made: the first waiting sequence preempts running ones that come after it
    for_decodes     before decode rows are made: blocks for the decodes that have filled theirs
    grow            while prompts are packed: blocks for the next chunk of a prompt

This module says which sequences are candidates; a `VictimPolicy` picks one of them and says what becomes of its K/V. A
preempted sequence gives up its blocks and waits again at its old place (`Roster.preempt`).
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Reason
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.draft import Draft
from jaxserve.sched.journal import Journal
from jaxserve.sched.roster import Roster
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.victims import Claim, VictimPolicy, Wait


class Preempter:
    def __init__(
        self,
        config: SchedulerConfig,
        roster: Roster,
        ledger: TenantLedger,
        blocks: BlockManager,
        victims: VictimPolicy,
        journal: Journal,
    ) -> None:
        self._preempts_for_admission = config.preempt_for_admission
        self._roster, self._ledger, self._blocks = roster, ledger, blocks
        self._victims, self._journal = victims, journal

    # --- for a waiting sequence -------------------------------------------------------------------------------

    def for_admission(self, draft: Draft) -> None:
        """Preempt running sequences that come after the first waiting one, until that one can be admitted."""
        head = self._roster.waiting.first()
        if head is None or not self._preempts_for_admission or not self._lacks_only_room(head, draft):
            return
        chunk = min(draft.limits.chunk, draft.limits.tokens)
        while (missing := self._roster.shortage(head, chunk)) > 0 or not self._roster.has_slot:
            candidates = tuple(s for s in self._roster.running if self._yields_to_waiting(s, head))
            if not candidates or sum(len(s.blocks) for s in candidates) < missing:
                return  # not even all of them together hold enough
            if self._preempt_one(head, candidates, missing, False, draft) is None:
                return
            draft.claimant = head

    def _lacks_only_room(self, head: Sequence, draft: Draft) -> bool:
        """Whether blocks and a slot are all that keeps the sequence from being admitted in this step."""
        allowed = draft.limits.admit > 0 and not head.num_pending
        return allowed and self._ledger.may_join(head, self._roster.running) and self._blocks.tiers.ready(head)

    def _yields_to_waiting(self, sequence: Sequence, head: Sequence) -> bool:
        return (
            self._roster.preemptible(sequence)
            and self._roster.precedes(head, sequence)
            and self._ledger.may_preempt_to_join(head, sequence, self._roster.running)
        )

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
        tenant is below its guarantee.
        """
        ledger, running = self._ledger, self._roster.running
        below_cap = ledger.within_cap(sequence, self._blocks.blocks_for(tokens), running)
        candidates = tuple(
            s
            for s in running
            if self._roster.preemptible(s)
            and not self._blocks.tiers.loading(s)
            and (below_cap or s.tenant == sequence.tenant)
            and ledger.may_preempt_to_grow(sequence, s, running)
        )
        others = tuple(s for s in candidates if s.tenant != sequence.tenant)
        return others if others and ledger.below_guarantee(sequence.tenant) else candidates

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
