"""A device made of dictionaries, which checks everything that the real one relies on.

The cache remembers, for every slot of every block, which token of which content was written there; a row may only run
if its whole context is in its blocks, exactly. A token is a function of the tokens before it, so that any two
schedules must give the same output. Results are computed in order when they are waited for, as on a device.
"""

import pickle
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import NO_TOKEN, Admitted, Masks, Row, StepPlan, StepResult
from tests.engine.fake_tiers import FakeTiers

VOCAB = 97


def next_token(tokens: Seq[int], seed: int = 0) -> int:
    """The model: any function of all tokens before will do."""
    value = seed % 1009
    for token in tokens:
        value = (value * 31 + token + 7) % 1_000_003
    return value % VOCAB


def name_of(admitted: Admitted) -> tuple[str, int]:
    """(request, completion)"""
    return admitted.request_id, admitted.completion


@dataclass
class FakeExecutor:
    block_size: int
    num_blocks: int
    num_slots: int
    buckets: BucketTable | None = None
    fail_submit: set[int] = field(default_factory=set)
    fail_sample: set[int] = field(default_factory=set)
    fail_wait: set[int] = field(default_factory=set)
    not_finite: dict[tuple[str, int], int] = field(default_factory=dict)
    """By (request, completion): how many output tokens it gets before its logits are not finite."""
    plans: list[StepPlan] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        self.tiers = FakeTiers(self.block_size)
        self.reset()
        self.resets = 0
        self._queue: list[FakePending] = []
        self.preemptions: Counter[tuple[str, int]] = Counter()

    def reset(self) -> None:
        self.cache: dict[int, tuple[int, ...]] = {}  # cache slot -> the tokens up to and with the one stored there
        self.known: dict[tuple[int, int], int] = {}  # (slot, position) -> token
        self.slots: dict[int, Admitted] = {}
        self.tables: dict[int, dict[int, int]] = {}  # by slot: which block holds which column
        self._queue = []
        self.tiers.reset()
        self.resets += 1

    def submit(self, plan: StepPlan) -> "FakePending":
        self.plans.append(plan)
        self._check_shape(plan)
        if plan.step in self.fail_submit:
            raise RuntimeError("no memory left on the device")
        pickle.loads(pickle.dumps(plan))  # plain data: it may leave the process
        self._take_slots(plan)
        pending = FakePending(self, plan)
        self._queue.append(pending)
        pending.seeds = {row.slot: self.slots[row.slot] for row in plan.rows}
        return pending

    def _take_slots(self, plan: StepPlan) -> None:
        preempted = {name_of(self.slots.pop(slot)) for slot in plan.preempted}
        self.preemptions.update(preempted)
        for admitted in plan.admitted:
            assert 0 <= admitted.slot < self.num_slots
            self.slots[admitted.slot] = admitted
        for row in plan.prefills:
            known = self.slots[row.slot].tokens[row.start : row.start + row.length]
            assert known == tuple(row.tokens), "an admission brings all tokens that its chunks will"
        rows = {name_of(self.slots[row.slot]) for row in plan.rows}
        assert not rows & preempted, "a preempted sequence has a row in the step"

    def _check_shape(self, plan: StepPlan) -> None:
        bucket = plan.bucket
        assert len(plan.decodes) <= bucket.decode_rows
        assert len(plan.prefills) <= bucket.prefill_rows
        assert sum(row.length for row in plan.prefills) <= bucket.prefill_tokens
        slots = [row.slot for row in plan.rows]
        assert all(not row.tokens and len(row.blocks) == 1 for row in plan.decodes), "a decode goes on in one block"
        assert all(len(row.tokens) == row.length for row in plan.prefills), "the host knows a chunk's tokens"
        assert len(set(slots)) == len(slots), "a slot runs once a step"
        assert bool(slots) == bool(bucket.tokens)
        if self.buckets is not None and slots:
            assert bucket in self.buckets.all(), "the step has no program"

    def run_until(self, pending: "FakePending") -> None:
        while pending.result is None:
            self._queue.pop(0).run()


@dataclass
class FakePending:
    executor: FakeExecutor
    plan: StepPlan
    seeds: dict[int, Admitted] = field(default_factory=dict)  # by slot, as they were when the step was submitted
    sampled: bool = False
    result: StepResult | None = None

    def sample(self, masks: Masks | None = None) -> None:
        assert masks is None and not self.sampled, "a step is sampled once"
        if self.plan.step in self.executor.fail_sample:
            raise RuntimeError("the sampler does not fit")
        self.sampled = True

    def wait(self) -> StepResult:
        assert self.sampled, "a step is sampled before it is waited for"
        if self.plan.step in self.executor.fail_wait:
            raise RuntimeError("the device went away")
        self.executor.run_until(self)
        assert self.result is not None
        return self.result

    def run(self) -> None:
        cache, tiers = self.executor.cache, self.executor.tiers
        loads = tiers.before(cache, self.plan.moves)
        rows = self.plan.rows
        for row in rows:
            self._note_blocks(row)
        inputs = [row.tokens or [self.executor.known[row.slot, row.start]] for row in rows]
        written: set[int] = set()
        for row, tokens in zip(rows, inputs, strict=True):
            self._write(row, tokens, written)
        sampled = [token for row in rows if (token := self._attend(row)) is not None]
        tiers.after(cache, loads)
        counts = np.array([row.wants.token for row in rows], np.int32)
        self.result = StepResult(np.array(sampled, np.int32), counts, moved=tiers.settled())

    def _note_blocks(self, row: Row) -> None:
        """A chunk brings the slot's whole table, a decode row the block that it writes to."""
        if row.tokens:
            self.executor.tables[row.slot] = dict(enumerate(row.blocks))
        else:
            self.executor.tables[row.slot][row.start // self.executor.block_size] = row.blocks[0]

    def _slot(self, row: Row, position: int) -> int:
        size = self.executor.block_size
        block = self.executor.tables[row.slot][position // size]
        assert 0 < block < self.executor.num_blocks, "block 0 is nobody's"
        return block * size + position % size

    def _context(self, row: Row) -> tuple[int, ...]:
        return self.executor.cache[self._slot(row, row.start - 1)] if row.start else ()

    def _write(self, row: Row, tokens: Seq[int], written: set[int]) -> None:
        context = self._context(row)
        assert len(context) == row.start, "the row's context is not in the cache"
        for i, token in enumerate(tokens):
            context = (*context, token)
            slot = self._slot(row, row.start + i)
            assert slot not in written, "two rows write to one place"
            written.add(slot)
            self.executor.cache[slot] = context

    def _attend(self, row: Row) -> int | None:
        end = row.start + row.length
        whole = self.executor.cache[self._slot(row, end - 1)]
        for position in range(end):
            assert self.executor.cache[self._slot(row, position)] == whole[: position + 1], (
                "a page holds another's tokens"
            )
        if not row.wants.token:
            return None
        slot = self.seeds[row.slot]
        token = next_token(whole, slot.seed)
        while token in slot.stop_ids and end < slot.num_prompt + slot.params.min_tokens:
            token = (token + 1) % VOCAB  # banned until then
        self.executor.known[row.slot, end] = token
        outputs = self.executor.not_finite.get(name_of(slot))
        return NO_TOKEN if outputs is not None and end >= slot.num_prompt + outputs else token
