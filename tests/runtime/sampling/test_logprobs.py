"""Log-probabilities and top tokens, at sizes below, at and above every block edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.runtime.sampling.logprobs import prompt_logprobs, token_logprobs
from jaxserve.runtime.sampling.vocabulary_blocks import argmax, top_tokens
from tests.runtime.sampling.sampling_oracle import log_softmax


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("vocab", [20, 127, 128, 2560, 2561, 5000])
def test_top_tokens_are_in_order_and_ties_by_id(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    coarse = np.round(rng.normal(size=(4, vocab)) * 4).astype(np.float32) + np.float32(0)  # full of ties, without -0.0
    values, ids = jax.jit(top_tokens, static_argnums=1)(jnp.asarray(coarse), 20)
    order = np.argsort(-coarse, axis=1, kind="stable")[:, :20]
    assert np.asarray(ids).tolist() == order.tolist()
    assert np.array_equal(np.asarray(values), np.take_along_axis(coarse, order, axis=1))
    assert np.asarray(argmax(jnp.asarray(coarse))).tolist() == coarse.argmax(axis=1).tolist()


def test_a_vocabulary_smaller_than_what_is_reported() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    logprob, rank, ids, top = token_logprobs(jnp.asarray(logits), jnp.asarray([2], jnp.int32))
    expected = log_softmax(logits)[0]
    assert float(logprob[0]) == pytest.approx(expected[2], abs=1e-6)
    assert int(rank[0]) == 2
    assert np.asarray(ids)[0, :3].tolist() == [1, 2, 0]
    assert (np.asarray(ids)[0, 3:] >= 3).all() and np.isneginf(np.asarray(top)[0, 3:]).all()


def test_banned_and_large_logits() -> None:
    logits = np.array([[1e30, -np.inf, 0.0], [-np.inf, -1e30, -np.inf]], np.float32)
    logprob, rank, _, _ = token_logprobs(jnp.asarray(logits), jnp.asarray([0, 1], jnp.int32))
    assert np.asarray(logprob).tolist() == [0.0, 0.0]
    assert np.asarray(rank).tolist() == [1, 1]


@pytest.mark.parametrize("length", [1, 16, 37, 48])
def test_prompt_logprobs_in_chunks(length: int) -> None:
    rng = np.random.default_rng(length)
    head = jnp.asarray(rng.normal(size=(8, 300)), jnp.float32)
    hidden = jnp.asarray(rng.normal(size=(length, 8)), jnp.float32)
    targets = rng.integers(0, 300, length).astype(np.int32)
    widths: list[int] = []

    def logits_fn(part: jax.Array) -> jax.Array:
        widths.append(part.shape[0])
        return part @ head

    logprobs, ranks, ids, top = jax.jit(lambda h, t: prompt_logprobs(logits_fn, h, t, chunk=16))(
        hidden, jnp.asarray(targets)
    )
    assert max(widths) <= 16
    expected = log_softmax(np.asarray(hidden, np.float64) @ np.asarray(head, np.float64))
    chosen = expected[np.arange(length), targets]
    np.testing.assert_allclose(logprobs, chosen, atol=1e-4)
    assert np.asarray(ranks).tolist() == (1 + (expected > chosen[:, None]).sum(axis=1)).tolist()
    assert top.shape == ids.shape == (length, 20)
    np.testing.assert_allclose(top, np.take_along_axis(expected, np.asarray(ids), axis=1), atol=1e-4)
