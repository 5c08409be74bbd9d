"""When blocks run out: who has to give way for whom. A `VictimPolicy` picks; here is who may be picked, and when.

    make_way     who is next of those that wait displaces running ones that would come after it
    make_room    a running sequence grows, and displaces until it fits, or gives way itself, or waits

A preempted sequence gives its blocks back and waits again, at its old place. One that was preempted `max_preemptions`
times comes back only when all the blocks it can ever need are free, and holds them: nothing thrashes, everything ends.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Reason
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.sched.draft import Draft
from jaxserve.sched.journal import Journal
from jaxserve.sched.roster import Roster
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.victims import Claim, Victim, VictimPolicy, Wait


class Displacement:
    """`max_preemptions`: how often one sequence may have to give way; 0: never."""

    def __init__(
        self,
        config: SchedulerConfig,
        max_preemptions: int,
        roster: Roster,
        ledger: TenantLedger,
        blocks: BlockManager,
        victims: VictimPolicy,
        journal: Journal,
    ) -> None:
        self.max_preemptions = max_preemptions
        self._for_admission = config.preempt_for_admission
        self._roster, self._ledger, self._blocks = roster, ledger, blocks
        self._victims, self._journal = victims, journal

    def reserve(self, sequence: Sequence) -> int:
        """Tokens that it must have blocks for from the start: it has given way often enough."""
        return sequence.max_len if sequence.preemptions >= self.max_preemptions else 0

    # --- for one that runs ------------------------------------------------------------------------------------

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for its first `tokens` tokens, within its tenant's share; False without them."""
        blocks = self._blocks.blocks_for(tokens)
        if blocks > len(sequence.blocks) and not self._ledger.within_cap(sequence, blocks, self._roster.running):
            return False
        return self._blocks.grow(sequence, tokens)

    def make_room(self, sequence: Sequence, tokens: int, draft: Draft, must: bool = True) -> bool:
        """Grow a running sequence, preempting until it fits; False if it is itself preempted, or has to wait."""
        running = self._roster.running
        while not self.grow(sequence, tokens):
            candidates = self._candidates(sequence, tokens)
            if not candidates:
                return False
            missing = self._blocks.blocks_for(tokens) - len(sequence.blocks) - self._blocks.pool.num_free
            victim = self._displace(Claim(sequence, candidates, missing, must, draft.now, tuple(running)), draft)
            if victim is None or victim is sequence:
                return False
        return True

    def _candidates(self, sequence: Sequence, tokens: int) -> tuple[Sequence, ...]:
        """Who may be preempted so that it can grow: of its own tenant only, if it is the share that is short."""
        ledger, running = self._ledger, self._roster.running
        inside = ledger.within_cap(sequence, self._blocks.blocks_for(tokens), running)
        candidates = tuple(
            s
            for s in running
            if s.preemptions < self.max_preemptions
            and not self._blocks.tiers.loading(s)
            and (inside or s.tenant == sequence.tenant)
            and ledger.may_yield(sequence, s, running)
        )
        borrowers = tuple(s for s in candidates if s.tenant != sequence.tenant)
        return borrowers if borrowers and ledger.standing(sequence.tenant) == 0 else candidates

    # --- for one that waits -----------------------------------------------------------------------------------

    def make_way(self, draft: Draft) -> None:
        """Who is next of those that wait may displace running ones that would come after it, before any row is made."""
        head = self._roster.waiting.first()
        if head is None or not self._for_admission or not self._may_come(head, draft):
            return
        missing = self._missing(head, draft)
        while missing > 0 or not self._roster.has_slot:
            candidates = tuple(s for s in self._roster.running if self._may_displace(head, s))
            if not candidates or sum(len(s.blocks) for s in candidates) < missing:
                return  # even all of them would not do
            claim = Claim(head, candidates, missing, False, draft.now, tuple(self._roster.running))
            if self._displace(claim, draft) is None:
                return
            draft.way_for = head
            missing = self._missing(head, draft)

    def _may_come(self, head: Sequence, draft: Draft) -> bool:
        """Nothing but blocks and a slot keeps it from joining."""
        joins = draft.limits.admit > 0 and not head.num_pending
        return joins and self._ledger.may_join(head, self._roster.running) and self._blocks.tiers.ready(head)

    def _may_displace(self, head: Sequence, sequence: Sequence) -> bool:
        return (
            sequence.preemptions < self.max_preemptions
            and self._roster.precedes(head, sequence)
            and self._ledger.may_displace(head, sequence, self._roster.running)
        )

    def _missing(self, head: Sequence, draft: Draft) -> int:
        chunk = min(draft.limits.chunk, draft.limits.tokens)
        return self._blocks.shortage(head, chunk, self.reserve(head), head.params.prompt_logprobs is None)

    # --- either -----------------------------------------------------------------------------------------------

    def _displace(self, claim: Claim, draft: Draft) -> Sequence | None:
        """Who gave way; None: the claimant waits, since that is cheaper. Either is recorded, with all the prices."""
        choice = self._victims.choose(claim)
        if isinstance(choice, Wait):
            self._journal.waited(claim.claimant, choice.spared, choice.prices)
            return None
        self._preempt(choice, claim.claimant, draft)
        return choice.sequence

    def _preempt(self, victim: Victim, claimant: Sequence, draft: Draft) -> None:
        """It has no row in this plan: what it holds is saved before the rows run."""
        sequence = victim.sequence
        draft.preempted.append(sequence)
        draft.freed_slots.append(sequence.slot)
        draft.held[sequence] = Reason.BLOCKS
        self._journal.displaced(sequence, claimant, victim.fate, victim.prices)
        self._blocks.park(sequence, victim.fate.tier)
        sequence.num_computed = 0
        sequence.decoding = False
        sequence.preemptions += 1
        self._roster.send_back(sequence)
