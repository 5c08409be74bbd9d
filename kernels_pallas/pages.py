"""The K/V cache of one layer, as every call here takes it: pages of keys and of values, and the scales of both.

    keys, values               [P, K, S, H]   P pages of S tokens, K KV heads of dimension H
    key_scales, value_scales   [P, K]         float32, for pages of float8_e4m3fn and int8 only: key = number x scale

Inside a kernel the same four fields hold references to memory.
"""

from typing import NamedTuple

import jax


class Pages(NamedTuple):
    """A pytree. Block tables name its pages by their index; page 0 is scratch, by convention."""

    keys: jax.Array  # [P, K, S, H]
    values: jax.Array  # [P, K, S, H]
    key_scales: jax.Array | None = None  # [P, K] float32
    value_scales: jax.Array | None = None  # [P, K] float32

    @property
    def quantised(self) -> bool:
        return self.key_scales is not None
