"""top_k and top_p keep exactly what a stable sort would keep, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxserve.runtime.sampling.truncation import truncate
from tests.runtime.sampling.sampling_oracle import keep

ROWS, VOCAB = 4, 300
truncate_jit = jax.jit(truncate)


def kept_by(weights: np.ndarray, top_k: list[int], top_p: list[float]) -> np.ndarray:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out = truncate_jit(
            jnp.asarray(weights, jnp.float32), jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32)
        )
    return np.asarray(out)


# Multiples of 1/16, and top_p of 1/64: every sum is exact in float32, so that the oracle decides alike at every edge.
sixteenths = arrays(np.int32, (ROWS, VOCAB), elements=st.integers(0, 16), fill=st.integers(0, 16))
counts = st.lists(st.integers(0, VOCAB + 5), min_size=ROWS, max_size=ROWS)
shares = st.lists(st.integers(1, 64).map(lambda n: n / 64), min_size=ROWS, max_size=ROWS)


@settings(max_examples=60, deadline=None)
@given(sixteenths, st.integers(0, VOCAB - 1), counts, shares)
def test_like_a_stable_sort(units: np.ndarray, peak: int, top_k: list[int], top_p: list[float]) -> None:
    weights = units / 16.0
    weights[:, peak] = 1.0  # the likeliest token's weight is 1
    kept = kept_by(weights, top_k, top_p)
    for row in range(ROWS):
        expected = keep(weights[row], top_k[row], top_p[row])
        useful = weights[row] > 0  # whether a token without weight is "kept" changes nothing
        assert (kept[row] & useful).tolist() == (expected & useful).tolist()


@pytest.mark.parametrize("spread", [0.5, 5.0, 60.0])
def test_real_weights(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    logits = (rng.normal(size=(ROWS, VOCAB)) * spread).astype(np.float32)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    top_k, top_p = [0, 7, 50, 299], [0.9, 1.0, 0.5, 0.999]
    kept = kept_by(weights, top_k, top_p)
    for row in range(ROWS):
        expected = keep(weights[row].astype(np.float64), top_k[row], top_p[row])
        assert kept[row].tolist() == expected.tolist()


def test_the_likeliest_token_always_stays() -> None:
    weights = np.full((ROWS, VOCAB), 1e-30)
    weights[:, 123] = 1.0
    kept = kept_by(weights, [1, 0, 0, 3], [1.0, 1e-30, 0.5, 1e-6])
    assert kept[:, 123].all()
    assert kept.sum(axis=1).tolist() == [1, 1, 1, 1]
