"""Who runs in the next step: continuous batching with chunked prefill, first come first served.

`plan(now)` packs a step; `commit(plan, result, now)` takes in what it brought. In between the step may still be
running: the scheduler plans ahead on what it knows (see `core.sequence`), so that the device never waits for the host.

A step takes every decode first, one token each; what is left of `max_num_batched_tokens` goes to prompt chunks, of the
prompts begun first, then of those that wait. When blocks run out the youngest sequence is preempted: its blocks go
back, and its tokens are computed again later. A sequence preempted `max_preemptions` times comes back only when all the
blocks it can ever need are free, and holds them: nothing thrashes, and everything ends.
"""

import heapq
from collections import OrderedDict

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.config import SchedulerConfig
from jaxserve.core.errors import QueueFull
from jaxserve.core.events import Event, Finished, Preempted, PromptScored, TokenSampled
from jaxserve.core.plan import Row, StepPlan, StepResult, TokenLogprobs
from jaxserve.core.sequence import FinishReason, Sequence, Status
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.packing import fill_to_edge


class Scheduler:
    """The only writer of sequences (blocks aside).

    `aligned_chunk`: chunks end at multiples of this many tokens, one prompt a step, no preemption (deterministic mode).
    """

    def __init__(
        self, config: SchedulerConfig, buckets: BucketTable, blocks: BlockManager, aligned_chunk: int | None = None
    ) -> None:
        self._config = config
        self._buckets = buckets
        self._blocks = blocks
        self._aligned_chunk = aligned_chunk
        self._max_preemptions = 0 if aligned_chunk else config.max_preemptions
        self._chunk_size = min(config.chunk_size or config.max_num_batched_tokens, buckets.max_prefill_tokens)
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()
        self._running: dict[Sequence, None] = {}
        self._free_slots = list(range(config.max_num_seqs))
        self._events: list[Event] = []
        self._step = 0
        self._prefilled_last = False

    # --- what can be asked ------------------------------------------------------------------------------------

    @property
    def blocks(self) -> BlockManager:
        return self._blocks

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Something waits, runs, or has ended and not been told."""
        return bool(self._waiting or self._running or self._events)

    def live(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    # --- coming and going -------------------------------------------------------------------------------------

    def add(self, sequences: list[Sequence]) -> None:
        """Queue the sequences of one request, all or none.

        Raises:
          QueueFull: the waiting queue is at its bound.
        """
        if len(self._waiting) + len(sequences) > self._config.max_waiting:
            raise QueueFull(len(self._waiting), self._config.max_waiting)
        for sequence in sequences:
            self._waiting[sequence] = None

    def finish(self, sequence: Sequence, reason: FinishReason, now: float, error: str | None = None) -> None:
        """End a sequence from outside (abort, a stop string, an error): its blocks and slot are free at once.

        A step under way may still write to its blocks; steps run in order, so whoever is given them writes later.
        """
        if not sequence.finished:
            self._end(sequence, reason, now)
            self._events.append(Finished(sequence, reason, error))

    def drain_events(self) -> list[Event]:
        """What happened outside `commit` since the last call: preemptions and outside finishes."""
        events, self._events = self._events, []
        return events

    # --- the step ---------------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run before a step under way is committed."""
        preempted: list[Sequence] = []
        admitted: list[Sequence] = []
        decodes: list[Row] = []
        prefills: list[Row] = []
        if self._buckets.mixes:
            decodes = self._decode_rows(preempted)
            prefills = self._prefill_rows(now, len(decodes), admitted, preempted)
        else:  # one kind a step, in turn, so that neither starves the other
            if not self._prefilled_last:
                prefills = self._prefill_rows(now, 0, admitted, preempted)
            if not prefills:
                decodes = self._decode_rows(preempted)
            if not decodes and not prefills:
                prefills = self._prefill_rows(now, 0, admitted, preempted)
            self._prefilled_last = bool(prefills)
        self._events.extend(Preempted(sequence) for sequence in preempted)
        if not decodes and not prefills:
            return None
        self._step += 1
        bucket = self._buckets.fit(len(decodes), sum(row.length for row in prefills))
        return StepPlan(self._step, tuple(decodes), tuple(prefills), bucket, tuple(admitted), tuple(preempted))

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Take in a step's tokens. Rows of sequences that ended meanwhile are dropped."""
        events = self.drain_events()
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

    # --- decode -----------------------------------------------------------------------------------------------

    def _decode_rows(self, preempted: list[Sequence]) -> list[Row]:
        rows: list[Row] = []
        block_size = self._blocks.block_size
        for sequence in list(self._running):
            if not sequence.decoding or sequence.status is not Status.RUNNING:
                continue  # still in its prompt, or preempted a moment ago
            start = sequence.num_computed
            if start + 1 >= sequence.max_len:
                continue  # its last token is being sampled
            if start == len(sequence.blocks) * block_size and not self._make_room(sequence, start + 1, preempted):
                continue
            sequence.num_computed = start + 1
            sequence.num_pending += 1
            if start % block_size <= 1:  # a block has filled, and its tokens are known by now
                self._blocks.note_computed(sequence)
            rows.append(Row(sequence, start, 1, True))
        return rows

    def _make_room(self, sequence: Sequence, tokens: int, preempted: list[Sequence]) -> bool:
        """Grow a running sequence, preempting the youngest until it fits; False if it is itself preempted."""
        while not self._blocks.grow(sequence, tokens):
            victim = next(s for s in reversed(self._running) if s.preemptions < self._max_preemptions)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.decoding = False
        sequence.preemptions += 1
        self._waiting[sequence] = None
        self._waiting.move_to_end(sequence, last=False)

    # --- prefill ----------------------------------------------------------------------------------------------

    def _prefill_rows(
        self, now: float, decode_rows: int, admitted: list[Sequence], preempted: list[Sequence]
    ) -> list[Row]:
        budget = min(self._config.max_num_batched_tokens - decode_rows, self._buckets.max_prefill_tokens)
        lengths: dict[Sequence, int] = {}
        for sequence in [s for s in self._running if not s.decoding]:
            if budget <= 0 or len(lengths) == self._buckets.prefill_rows or sequence.status is not Status.RUNNING:
                continue
            chunk = self._chunk(sequence, budget)
            if not chunk:
                continue  # max_tokens = 0, and its last chunk is under way
            room = self._blocks.grow(sequence, sequence.num_computed + chunk)
            if not room and not lengths and not decode_rows:  # nothing else moves: somebody has to give way
                room = self._make_room(sequence, sequence.num_computed + chunk, preempted)
            if room:
                lengths[sequence] = chunk
                budget -= chunk
        while self._waiting and not preempted and budget > 0 and len(lengths) < self._buckets.prefill_rows:
            sequence = next(iter(self._waiting))
            if not self._free_slots or sequence.num_pending or not self._admit(sequence, budget, now):
                break
            admitted.append(sequence)
            lengths[sequence] = self._chunk(sequence, budget)
            budget -= lengths[sequence]
        if lengths and self._config.fill_buckets and not self._aligned_chunk:
            fill_to_edge(lengths, budget, self._buckets, self._blocks)
        return [self._prefill_row(sequence, length) for sequence, length in lengths.items()]

    def _chunk(self, sequence: Sequence, budget: int) -> int:
        chunk = min(sequence.num_uncomputed, self._chunk_size, budget)
        if self._aligned_chunk:
            chunk = min(chunk, self._aligned_chunk - sequence.num_computed % self._aligned_chunk)
        return chunk

    def _admit(self, sequence: Sequence, budget: int, now: float) -> bool:
        params = sequence.params
        reserve = sequence.max_len if sequence.preemptions >= self._max_preemptions else 0
        shared = self._blocks.admit(
            sequence, min(self._chunk_size, budget), reserve=reserve, share=params.prompt_logprobs is None
        )
        if shared is None:
            return False
        del self._waiting[sequence]
        self._running[sequence] = None
        sequence.status = Status.RUNNING
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.num_computed = sequence.num_cached = shared
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
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
        if sequence.first_token_s is None:
            sequence.first_token_s = now
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
            del self._waiting[sequence]
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        sequence.finished_s = now

    def _release(self, sequence: Sequence) -> None:
        """Give back a running sequence's blocks and slot."""
        self._blocks.free(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        del self._running[sequence]
