"""Fills a step: decodes, then chunks of prompts, within the policy's limits and in the ordering's order.

    limits.mode      MIXED            every decode | chunks with what is left of the budget
                     PREFILL_FIRST    chunks alone while any can go, else every decode
                     ALTERNATE        one kind a step, in turn

Before rows are made, `Preempter` frees blocks. A sequence that gets no row has its reason in `Draft.reasons`.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.decisions import Reason
from jaxserve.core.plan import NOTHING, ONE_TOKEN, Row, Wants, row_of
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.chunking import LongPromptGuard, fill_to_edge
from jaxserve.sched.draft import Draft
from jaxserve.sched.policies.policy import Mode
from jaxserve.sched.preemption import Preempter
from jaxserve.sched.roster import Roster
from jaxserve.sched.shares import Shares
from jaxserve.sched.tenant_ledger import TenantLedger


class Packer:
    """Advances `Sequence.num_computed`, `num_pending` and `decoding`."""

    def __init__(
        self,
        config: SchedulerConfig,
        buckets: BucketTable,
        roster: Roster,
        ledger: TenantLedger,
        shares: Shares,
        blocks: BlockManager,
        preempter: Preempter,
    ) -> None:
        self._config, self._buckets = config, buckets
        self._roster, self._ledger, self._shares = roster, ledger, shares
        self._blocks, self._preempter = blocks, preempter
        self._prefilled_last = False

    def pack(self, draft: Draft) -> None:
        self._preempter.for_admission(draft)
        match draft.limits.mode:
            case Mode.MIXED if self._buckets.mixes:
                self._decodes(draft)
                self._prefills(draft)
            case Mode.PREFILL_FIRST:
                self._prefills(draft)
                if not draft.prefills:
                    self._decodes(draft)
            case _:
                self._in_turn(draft)

    def _in_turn(self, draft: Draft) -> None:
        prompts_first = not self._prefilled_last
        if prompts_first:
            self._prefills(draft)
        if not draft.prefills:
            self._decodes(draft)
        if not draft.decodes and not draft.prefills:
            self._prefills(draft)
        elif not prompts_first:
            for sequence in self._roster.in_prefill():
                draft.reasons.setdefault(sequence, Reason.BUDGET)
        self._prefilled_last = bool(draft.prefills)

    # --- decodes ----------------------------------------------------------------------------------------------

    def _decodes(self, draft: Draft) -> None:
        block_size, rows = self._blocks.block_size, draft.decodes
        draft.decoding = self._preempter.for_decodes(draft)
        for sequence in draft.decoding:
            start = sequence.num_computed
            sequence.num_computed = start + 1
            sequence.num_pending += 1
            column = start // block_size
            if start - column * block_size <= 1:  # a block has filled, and its tokens are known by now
                self._blocks.note_computed(sequence)
            rows.append(row_of((sequence.slot, start, 1, sequence.decode_wants, (), (sequence.blocks[column],))))

    # --- prompts ----------------------------------------------------------------------------------------------

    def _prefills(self, draft: Draft) -> None:
        """Chunks of the prompts in progress and of waiting ones, merged in the ordering's order."""
        limits, roster, chunks = draft.limits, self._roster, draft.chunks
        draft.budget = min(limits.tokens - len(draft.decodes), self._buckets.max_prefill_tokens)
        begun = roster.in_prefill()
        draft.guard = LongPromptGuard(self._config, begun, draft.budget)
        admitting = True
        while draft.budget > 0 and len(chunks) < self._buckets.prefill_rows:
            head = self._next_waiting(draft) if admitting and draft.admissions_left > 0 else None
            if begun and (head is None or not roster.precedes(head, begun[-1])):
                admitting = self._continue_prompt(begun.pop(), draft) and admitting
            elif head is not None:
                admitting = self._admit_next(head, draft)
            else:
                break
        if chunks and self._config.fill_buckets and not self._buckets.aligned_chunk and not limits.no_split:
            fill_to_edge(chunks, draft.budget, self._buckets, self._blocks)
        for sequence in begun:
            draft.reasons.setdefault(sequence, Reason.BUDGET)
        draft.prefills += [self._prefill_row(sequence, length) for sequence, length in chunks.items()]

    def _next_waiting(self, draft: Draft) -> Sequence | None:
        """The first waiting sequence; while blocks are short, the one for which others were preempted."""
        if not draft.short:
            return self._roster.waiting.first(draft.skipped_tenants)
        claimant = draft.claimant
        return claimant if claimant is not None and claimant.tenant not in draft.skipped_tenants else None

    def _continue_prompt(self, sequence: Sequence, draft: Draft) -> bool:
        """Add the next chunk of a prompt in progress.

        False: it waits for blocks, so no other sequence may be admitted and take them.
        """
        if sequence.status is not Status.RUNNING:
            return True  # it was preempted for one before it
        alone = not draft.chunks
        chunk = self._chunk(sequence, draft, alone)
        if not chunk:
            draft.reasons[sequence] = Reason.BUDGET
            return True
        tokens = sequence.num_computed + chunk
        # a step without any row must not be: then others are preempted
        if self._preempter.grow(sequence, tokens, draft, preempt=alone and not draft.decodes):
            self._add_chunk(sequence, chunk, draft)
            return True
        draft.reasons.setdefault(sequence, Reason.BLOCKS)
        return False

    def _admit_next(self, head: Sequence, draft: Draft) -> bool:
        """Admit the next waiting sequence and add its first chunk, or skip its tenant.

        A tenant is skipped if it is at a limit of its own, or lacks blocks and would have more than its fair part with
        them. False: blocks, a slot or tokens are missing, and no other sequence is admitted before it.
        """
        if not draft.guard.allows(head):
            draft.reasons[head] = Reason.BUDGET
            draft.skipped_tenants.add(head.tenant)
        elif not self._ledger.may_join(head, self._roster.running):
            draft.reasons[head] = Reason.SHARE
            draft.skipped_tenants.add(head.tenant)
            draft.at_limit.add(head.tenant)
        elif (reason := self._admit(head, draft)) is not None:
            draft.reasons[head] = reason
            if reason is not Reason.BLOCKS or not self._borrows(head):
                return False
            draft.skipped_tenants.add(head.tenant)
        elif self._blocks.tiers.loading(head):
            draft.reasons[head] = Reason.TIER
        else:
            self._add_chunk(head, self._chunk(head, draft, alone=True), draft)
        return True

    def _borrows(self, head: Sequence) -> bool:
        """Whether its tenant would have more blocks than its fair part."""
        shares, needed = self._shares, self._blocks.blocks_for(len(head.tokens) + 1)
        return shares.fair and not shares.within(head.tenant, needed, self._roster.running)

    def _admit(self, head: Sequence, draft: Draft) -> Reason | None:
        """None: the sequence has a slot and blocks for its first chunk. Else why it has to wait."""
        tiers, most = self._blocks.tiers, min(draft.limits.chunk, draft.budget)
        if not tiers.ready(head):
            return Reason.TIER
        if not self._roster.has_slot or head.num_pending:
            return Reason.BUDGET
        parked = tiers.parked(head)
        uncomputed = head.num_uncomputed - (parked.tokens if parked else 0)
        if draft.limits.no_split and draft.chunks and uncomputed > most:
            return Reason.BUDGET
        if not self._roster.admit(head, most, draft.now):
            return Reason.BLOCKS
        draft.reasons.pop(head, None)
        draft.admitted.append(head)
        return None

    def _chunk(self, sequence: Sequence, draft: Draft, alone: bool) -> int:
        """Tokens of its prompt in this step. `alone`: it may be split, as no other prompt is in the step."""
        if not draft.guard.allows(sequence):
            return 0
        left, limits = sequence.num_uncomputed, draft.limits
        wanted = draft.guard.cap(sequence, min(left, limits.chunk))
        chunk = min(wanted, draft.budget)
        if limits.no_split and not alone and chunk < wanted:
            return 0
        if self._buckets.aligned_chunk:
            chunk = min(chunk, self._buckets.aligned_chunk - sequence.num_computed % self._buckets.aligned_chunk)
        return chunk

    def _add_chunk(self, sequence: Sequence, chunk: int, draft: Draft) -> None:
        draft.guard.takes(sequence)
        draft.chunks[sequence] = chunk
        draft.budget -= chunk

    def _prefill_row(self, sequence: Sequence, length: int) -> Row:
        start = sequence.num_computed
        sequence.num_computed = start + length
        ends = sequence.num_computed == len(sequence.tokens)
        samples = ends and len(sequence.tokens) < sequence.max_len
        if samples:
            sequence.decoding = True
            sequence.num_pending += 1
        self._blocks.note_computed(sequence)
        tokens, end = sequence.tokens, start + length
        wants = _wants(sequence, start, end, samples)
        return Row(sequence.slot, start, length, wants, tokens[start:end], tuple(sequence.blocks))


def _wants(sequence: Sequence, start: int, end: int, samples: bool) -> Wants:
    """Of a chunk: a token if it is the last one, and scores of the prompt's tokens from `start + 1` to `end`."""
    params = sequence.params
    if params.logprobs is None and params.prompt_logprobs is None:
        return ONE_TOKEN if samples else NOTHING
    scored = params.prompt_logprobs is not None and start + 1 < sequence.num_prompt
    targets = sequence.tokens[start + 1 : min(end + 1, sequence.num_prompt)] if scored else ()
    return Wants(samples, params.logprobs if samples else None, params.prompt_logprobs if scored else None, targets)
