"""Fills a step: decodes, then chunks of prompts, within the policy's limits and in the ordering's order.

    limits.mode      MIXED            every decode | chunks with what is left of the budget
                     PREFILL_FIRST    chunks alone while any can go, else every decode
                     ALTERNATE        one kind a step, in turn

Whoever is left without a row gets its reason here, in `Draft.held`.
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.decisions import Reason
from jaxserve.core.plan import NOTHING, ONE_TOKEN, Row, Wants
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.draft import Draft
from jaxserve.sched.long_prompts import LongPromptGuard
from jaxserve.sched.packing import fill_to_edge
from jaxserve.sched.policies.policy import Mode
from jaxserve.sched.preemption import Displacement
from jaxserve.sched.roster import Roster
from jaxserve.sched.tenant_ledger import TenantLedger


class Packer:
    """Says how far sequences are computed. `aligned_chunk`: see `Scheduler`."""

    def __init__(
        self,
        config: SchedulerConfig,
        buckets: BucketTable,
        aligned_chunk: int | None,
        roster: Roster,
        ledger: TenantLedger,
        blocks: BlockManager,
        displacement: Displacement,
    ) -> None:
        self._config, self._buckets, self._aligned_chunk = config, buckets, aligned_chunk
        self._roster, self._ledger, self._blocks = roster, ledger, blocks
        self._displacement = displacement
        self._prefilled_last = False

    def pack(self, draft: Draft) -> None:
        self._displacement.make_way(draft)
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
        if not self._prefilled_last:
            self._prefills(draft)
        if not draft.prefills:
            self._decodes(draft)
        if not draft.decodes and not draft.prefills:
            self._prefills(draft)
        self._prefilled_last = bool(draft.prefills)

    # --- decodes ----------------------------------------------------------------------------------------------

    def _decodes(self, draft: Draft) -> None:
        block_size, rows, decoding = self._blocks.block_size, draft.decodes, draft.decoding
        self._grow_decodes(draft)
        for sequence in self._roster.running:
            if not sequence.decoding:
                continue  # still in its prompt
            start = sequence.num_computed
            if start + 1 >= sequence.max_len or start == len(sequence.blocks) * block_size:
                continue  # its last token is being sampled, or it waits for a block
            sequence.num_computed = start + 1
            sequence.num_pending += 1
            index, offset = divmod(start, block_size)
            if offset <= 1:  # a block has filled, and its tokens are known by now
                self._blocks.note_computed(sequence)
            rows.append(Row(sequence.slot, start, 1, sequence.decode_wants, (), (sequence.blocks[index],)))
            decoding.append(sequence)

    def _grow_decodes(self, draft: Draft) -> None:
        """Blocks for the decodes that have filled theirs; before any row is made, so that no victim has one."""
        block_size = self._blocks.block_size
        going = [s for s in self._roster.running if s.decoding and s.num_computed + 1 < s.max_len]
        full = [s for s in going if s.num_computed == len(s.blocks) * block_size]
        moves = len(full) < len(going)
        for sequence in full:
            if sequence.status is not Status.RUNNING:
                continue
            if self._displacement.make_room(sequence, sequence.num_computed + 1, draft, must=not moves):
                moves = True
            elif sequence.status is Status.RUNNING:
                draft.stalled = True
                draft.held[sequence] = Reason.BLOCKS

    # --- prompts ----------------------------------------------------------------------------------------------

    def _prefills(self, draft: Draft) -> None:
        """Chunks of the prompts that are under way and of those that wait, merged in the ordering's order."""
        limits, roster, chunks = draft.limits, self._roster, draft.chunks
        draft.budget = min(limits.tokens - len(draft.decodes), self._buckets.max_prefill_tokens)
        begun = roster.begun()
        draft.guard = LongPromptGuard(self._config, begun, draft.budget)
        places = draft.places
        while draft.budget > 0 and len(chunks) < self._buckets.prefill_rows:
            head = roster.waiting.first(draft.passed) if places > len(draft.admitted) else None
            if begun and (head is None or not roster.precedes(head, begun[-1])):
                open_to_others = self._go_on(begun.pop(), draft)
            elif head is not None:
                open_to_others = self._take_in(head, draft)
            else:
                break
            if not open_to_others or draft.way_is_done:
                places = 0
        if chunks and self._config.fill_buckets and not self._aligned_chunk and not limits.whole:
            fill_to_edge(chunks, draft.budget, self._buckets, self._blocks)
        for sequence in begun:
            draft.held.setdefault(sequence, Reason.BUDGET)
        draft.prefills += [self._prefill_row(sequence, length) for sequence, length in chunks.items()]

    def _go_on(self, sequence: Sequence, draft: Draft) -> bool:
        """The next chunk of a prompt under way; False: it waits for blocks, and nobody may take them away from it."""
        if sequence.status is not Status.RUNNING:
            return True  # it has given way a moment ago
        alone = not draft.chunks
        chunk = self._chunk(sequence, draft, alone)
        if not chunk:
            draft.held[sequence] = Reason.BUDGET
        elif self._grow_prefill(sequence, chunk, draft, alone):
            draft.guard.takes(sequence)
            self._add_chunk(sequence, chunk, draft)
        else:
            draft.held.setdefault(sequence, Reason.BLOCKS)
            return False
        return True

    def _take_in(self, head: Sequence, draft: Draft) -> bool:
        """The first chunk of who is next of those that wait; False: it has no blocks or no slot, and nobody passes."""
        if not draft.guard.allows(head):
            draft.held[head] = Reason.BUDGET
            draft.passed.add(head.tenant)
        elif not self._ledger.may_join(head, self._roster.running):
            draft.held[head] = Reason.SHARE
            draft.passed.add(head.tenant)
        elif not self._admit(head, draft, alone=not draft.chunks):
            return False
        elif self._blocks.tiers.loading(head):
            draft.held[head] = Reason.TIER
        else:
            draft.guard.takes(head)
            self._add_chunk(head, self._chunk(head, draft, alone=True), draft)
        return True

    def _add_chunk(self, sequence: Sequence, chunk: int, draft: Draft) -> None:
        draft.chunks[sequence] = chunk
        draft.budget -= chunk

    def _chunk(self, sequence: Sequence, draft: Draft, alone: bool) -> int:
        """Tokens of its prompt in this step. `alone`: nobody is in the step's prefill yet, so it may be split."""
        if not draft.guard.allows(sequence):
            return 0
        left, limits = sequence.num_uncomputed, draft.limits
        wanted = draft.guard.cap(sequence, min(left, limits.chunk))
        chunk = min(wanted, draft.budget)
        if limits.whole and not alone and chunk < wanted:
            return 0
        if self._aligned_chunk:
            chunk = min(chunk, self._aligned_chunk - sequence.num_computed % self._aligned_chunk)
        return chunk

    def _grow_prefill(self, sequence: Sequence, chunk: int, draft: Draft, alone: bool) -> bool:
        tokens = sequence.num_computed + chunk
        if alone and not draft.decodes:  # nothing else moves: somebody has to give way
            return self._displacement.make_room(sequence, tokens, draft)
        return self._displacement.grow(sequence, tokens)

    def _admit(self, sequence: Sequence, draft: Draft, alone: bool) -> bool:
        """Give a waiting sequence a slot and blocks for its first chunk; False, and it waits on."""
        limits, parked = draft.limits, self._blocks.tiers.parked(sequence)
        if not self._blocks.tiers.ready(sequence):
            draft.held[sequence] = Reason.TIER
            return False
        draft.held[sequence] = Reason.BUDGET
        if not self._roster.has_slot or sequence.num_pending:
            return False
        most = min(limits.chunk, draft.budget)
        uncomputed = sequence.num_uncomputed - (parked.tokens if parked else 0)
        if limits.whole and not alone and uncomputed > most:
            return False
        share = sequence.params.prompt_logprobs is None
        shared = self._blocks.admit(sequence, most, self._displacement.reserve(sequence), share)
        if shared is None:
            draft.held[sequence] = Reason.BLOCKS
            return False
        del draft.held[sequence]
        self._roster.join(sequence)
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
