"""Attention over K/V that lie in pages, found through block tables. `api` is the way in."""

from kernels_pallas.paged_attention.api import decode, prefill

__all__ = ["decode", "prefill"]
