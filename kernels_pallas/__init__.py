"""Paged attention for JAX: kernels and their plain references. Imports jax and numpy only."""
