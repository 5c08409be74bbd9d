"""Bucket tables, their edges, and packing to them."""

import pytest

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import Bucket
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.sched.chunking import fill_to_edge

TABLE = BucketTable(decode=(1, 4, 16), prefill=(64, 128, 256), mixed_decode=(4, 16), prefill_rows=4)


def sequence(length: int) -> Sequence:
    return Sequence(Request(id="r", prompt=(1,) * length, params=SamplingParams()), 0, 1000, 0)


def test_defaults_end_at_the_limits() -> None:
    table = BucketTable.from_config(BucketConfig(), SchedulerConfig(max_num_seqs=24, max_num_batched_tokens=300))
    assert table.decode == (1, 4, 16, 24) and table.prefill == (64, 256, 300) and table.mixed_decode == (16, 24)


def test_the_first_two_can_serve_anything() -> None:
    first, second = TABLE.all()[:2]
    assert first == Bucket(16, 256, 4, 20) and second == Bucket(16, 0, 0, 16)
    assert len(set(TABLE.all())) == len(TABLE.all()) == 3 + 2 * 3 + 3


@pytest.mark.parametrize(
    ("decode", "prefill", "bucket"),
    [
        (1, 0, Bucket(1, 0, 0, 4)), (2, 0, Bucket(4, 0, 0, 4)), (16, 0, Bucket(16, 0, 0, 16)),
        (0, 1, Bucket(0, 64, 4, 4)), (0, 64, Bucket(0, 64, 4, 4)), (0, 65, Bucket(0, 128, 4, 4)),
        (1, 65, Bucket(4, 128, 4, 16)), (5, 256, Bucket(16, 256, 4, 20)),
    ],
)  # fmt: skip
def test_a_step_takes_the_smallest_that_holds_it(decode: int, prefill: int, bucket: Bucket) -> None:
    assert TABLE.fit(decode, prefill) == bucket and bucket in TABLE.all()


@pytest.mark.parametrize(
    ("tokens", "edges"), [(1, (0, 64)), (64, (64, 64)), (65, (64, 128)), (130, (128, 256)), (256, (256, 256))]
)
def test_edges(tokens: int, edges: tuple[int, int]) -> None:
    assert TABLE.prefill_edges(tokens) == edges


def packed(lengths: list[int], totals: list[int], budget: int, blocks: int = 100) -> list[int]:
    """Chunk lengths after packing; sequences hold blocks for their chunks, as admission leaves them."""
    manager = BlockManager(CacheConfig(block_size=16, enable_prefix_caching=False, watermark=0.0), blocks + 1)
    chunks = {sequence(total): length for length, total in zip(lengths, totals, strict=True)}
    for s, length in chunks.items():
        assert manager.admit(s, length) == 0
    fill_to_edge(chunks, budget, TABLE, manager)
    return list(chunks.values())


def test_chunks_grow_to_the_edge_they_pay_for() -> None:
    assert packed([50], [300], 200) == [64]
    assert packed([50, 20], [52, 300], 200) == [52, 76]


def test_never_over_the_budget_nor_the_prompt() -> None:
    assert packed([50], [300], 5) == [55]
    assert packed([50], [53], 200) == [53]


def test_growth_needs_blocks() -> None:
    assert packed([48], [300], 200, blocks=3) == [48]


def test_a_few_tokens_over_an_edge_wait() -> None:
    assert packed([135], [135], 0) == [128]
    assert packed([60, 10], [60, 10], 0) == [60, 4]


def test_many_tokens_over_an_edge_do_not_wait() -> None:
    assert packed([150], [150], 0) == [150]


def test_the_last_chunk_never_vanishes() -> None:
    assert packed([64, 2], [64, 2], 0) == [64, 2]
