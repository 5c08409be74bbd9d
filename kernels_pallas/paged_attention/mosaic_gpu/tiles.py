"""Tile sizes and ring lengths, by head dimension and by the bytes of a page's number.

Chosen by what the compiler makes of them for an H200, not by time: no GPU has run these kernels. The command that tells
registers, spills, shared memory and programs an SM for every entry is

    python -m bench.compile --target h200 --only kernels --backend mosaic_gpu

The rules: no spill; of decode at least two programs an SM, and 33 KB in flight (the memory's rate times its latency);
of prefill the largest tile that fits beside a second one. Groups make no difference, for up to 16 query heads are rows
of one 64-row product, and neither do page sizes: smaller pages lie side by side in a tile, larger ones are cut.
Not met: decode at head dimension 256 on pages of 8 bits, where one program an SM has 32 KB in flight.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class DecodeTile(NamedTuple):
    tokens: int
    stages: int
    """Of the ring: tiles computed or on their way."""


class PrefillTile(NamedTuple):
    tokens: int
    stages: int
    computing: int = 2
    """Warpgroups that compute, 64 query rows each."""


DECODE = {
    (64, 2): DecodeTile(64, 3), (96, 2): DecodeTile(64, 2), (128, 2): DecodeTile(64, 2), (256, 2): DecodeTile(32, 2),
    (64, 1): DecodeTile(64, 3), (96, 1): DecodeTile(64, 3), (128, 1): DecodeTile(64, 3), (256, 1): DecodeTile(64, 2),
}  # fmt: skip
PREFILL = {
    (64, 2): PrefillTile(128, 2), (96, 2): PrefillTile(128, 2), (128, 2): PrefillTile(128, 2),
    (256, 2): PrefillTile(64, 2),
    (64, 1): PrefillTile(64, 2), (96, 1): PrefillTile(64, 2), (128, 1): PrefillTile(64, 2),
    (256, 1): PrefillTile(64, 1, computing=1),
}  # fmt: skip


def decode_tile(head_dim: int, kv_dtype: Any) -> DecodeTile:
    return DECODE[head_dim, jnp.dtype(kv_dtype).itemsize]


def prefill_tile(head_dim: int, kv_dtype: Any) -> PrefillTile:
    return PREFILL[head_dim, jnp.dtype(kv_dtype).itemsize]
