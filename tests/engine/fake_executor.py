"""A device made of dictionaries, which checks everything that the real one relies on.

The cache remembers, for every slot of every block, which token of which content was written there; a row may only run
if its whole context is in its blocks, exactly. A token is a function of the tokens before it, so that any two
schedules must give the same output. Results are computed in order when they are waited for, as on a device.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import Move, Row, StepPlan, StepResult
from tests.engine.fake_tiers import FakeTiers

VOCAB = 97


def next_token(tokens: Seq[int], seed: int = 0) -> int:
    """The model: any function of all tokens before will do."""
    value = seed % 1009
    for token in tokens:
        value = (value * 31 + token + 7) % 1_000_003
    return value % VOCAB


@dataclass
class Snapshot:
    """What a device is sent of a row; the sequence itself may change before the step runs."""

    slot: int
    start: int
    length: int
    samples: bool
    blocks: list[int]
    tokens: list[int] | None  # a chunk's; None: the device knows the token
    seed: int


@dataclass
class FakeExecutor:
    block_size: int
    num_blocks: int
    num_slots: int
    buckets: BucketTable | None = None
    fail_submit: set[int] = field(default_factory=set)
    fail_wait: set[int] = field(default_factory=set)
    plans: list[StepPlan] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        self.tiers = FakeTiers(self.block_size)
        self.reset()
        self.resets = 0
        self._queue: list[FakePending] = []

    def reset(self) -> None:
        self.cache: dict[int, tuple[int, ...]] = {}  # cache slot -> the tokens up to and with the one stored there
        self.known: dict[tuple[int, int], int] = {}  # (slot, position) -> token
        self._queue = []
        self.tiers.reset()
        self.resets += 1

    def submit(self, plan: StepPlan) -> "FakePending":
        self.plans.append(plan)
        self._check_shape(plan)
        if plan.step in self.fail_submit:
            raise RuntimeError("no memory left on the device")
        rows = [self._snapshot(row, decode=True) for row in plan.decodes]
        rows += [self._snapshot(row, decode=False) for row in plan.prefills]
        pending = FakePending(self, plan.step, rows, plan.moves)
        self._queue.append(pending)
        return pending

    def _snapshot(self, row: Row, decode: bool) -> Snapshot:
        s = row.sequence
        assert 0 <= s.slot < self.num_slots
        tokens = None if decode else s.tokens[row.start : row.start + row.length]
        assert decode or len(tokens or ()) == row.length, "a chunk's tokens must be known to the host"
        return Snapshot(s.slot, row.start, row.length, row.samples, list(s.blocks), tokens, s.seed)

    def _check_shape(self, plan: StepPlan) -> None:
        bucket = plan.bucket
        assert len(plan.decodes) <= bucket.decode_rows
        assert len(plan.prefills) <= bucket.prefill_rows
        assert sum(row.length for row in plan.prefills) <= bucket.prefill_tokens
        slots = [row.sequence.slot for row in (*plan.decodes, *plan.prefills)]
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
    step: int
    rows: list[Snapshot]
    moves: tuple[Move, ...] = ()
    result: StepResult | None = None

    def wait(self) -> StepResult:
        if self.step in self.executor.fail_wait:
            raise RuntimeError("the device went away")
        self.executor.run_until(self)
        assert self.result is not None
        return self.result

    def run(self) -> None:
        cache, tiers = self.executor.cache, self.executor.tiers
        loads = tiers.before(cache, self.moves)
        inputs = [self._inputs(row) for row in self.rows]
        written: set[int] = set()
        for row, tokens in zip(self.rows, inputs, strict=True):
            self._write(row, tokens, written)
        sampled = [self._attend(row, tokens) for row, tokens in zip(self.rows, inputs, strict=True)]
        tiers.after(cache, loads)
        self.result = StepResult(np.array(sampled, np.int32), moved=tiers.settled())

    def _inputs(self, row: Snapshot) -> list[int]:
        if row.tokens is not None:
            return row.tokens
        return [self.executor.known[row.slot, row.start]]

    def _slot(self, row: Snapshot, position: int) -> int:
        size = self.executor.block_size
        block = row.blocks[position // size]
        assert 0 < block < self.executor.num_blocks, "block 0 is nobody's"
        return block * size + position % size

    def _context(self, row: Snapshot) -> tuple[int, ...]:
        return self.executor.cache[self._slot(row, row.start - 1)] if row.start else ()

    def _write(self, row: Snapshot, tokens: list[int], written: set[int]) -> None:
        context = self._context(row)
        assert len(context) == row.start, "the row's context is not in the cache"
        for i, token in enumerate(tokens):
            context = (*context, token)
            slot = self._slot(row, row.start + i)
            assert slot not in written, "two rows write to one place"
            written.add(slot)
            self.executor.cache[slot] = context

    def _attend(self, row: Snapshot, tokens: list[int]) -> int:
        end = row.start + row.length
        whole = self.executor.cache[self._slot(row, end - 1)]
        for position in range(end):
            assert self.executor.cache[self._slot(row, position)] == whole[: position + 1], (
                "a page holds another's tokens"
            )
        token = next_token(whole, row.seed)
        if row.samples:
            self.executor.known[row.slot, end] = token
        return token
