"""Tile sizes and ring lengths, by head dimension and by the bytes of a page's number.

`tile_table` is written by a command that compiles every tile that could fit and ranks those that pass:

    python -m bench.tiles --target h200

It goes by what the compiler makes of them, not by time: no GPU has run these kernels. Groups make no difference, for up
to 16 query heads are rows of one 64-row product, and neither do page sizes: smaller pages lie side by side in a tile,
larger ones are cut. The command compiles both kinds, and both of the types of 8 bits.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from kernels_pallas.paged_attention.mosaic_gpu.tile_table import DECODE, PREFILL


class DecodeTile(NamedTuple):
    tokens: int
    stages: int
    """Of the ring: tiles computed or on their way."""


class PrefillTile(NamedTuple):
    tokens: int
    stages: int
    computing: int = 2
    """Warpgroups that compute, 64 query rows each."""


def decode_tile(head_dim: int, kv_dtype: Any) -> DecodeTile:
    return DecodeTile(*DECODE[head_dim, jnp.dtype(kv_dtype).itemsize])


def prefill_tile(head_dim: int, kv_dtype: Any) -> PrefillTile:
    return PrefillTile(*PREFILL[head_dim, jnp.dtype(kv_dtype).itemsize])
