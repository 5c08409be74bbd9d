"""Attention over K/V that lie in pages, found through block tables. `api` is the way in."""

from kernels_pallas.paged_attention.api import decode, prefill
from kernels_pallas.paged_attention.choice import BACKENDS, UnsupportedByBackend

__all__ = ["BACKENDS", "UnsupportedByBackend", "decode", "prefill"]
