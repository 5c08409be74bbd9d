"""The XLA reference against NumPy in float64, pages outside the tables poisoned."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.paged_attention import decode, prefill
from kernels_pallas.write_kv import write_kv

K, G, H, S, P, W = 2, 3, 16, 8, 48, 6
N = K * G
OPTIONS = [(None, None, False), (1, None, False), (5, None, True), (20, 3.0, True)]
CHUNKS = [(5, 0, 40, 1, 16), (0, 0, 33, 0, 0), (1, 1, 1, 1, 1)]


def oracle(q, k_pages, v_pages, table, position, window, cap, sinks) -> np.ndarray:  # q [N, H] -> [N, H]
    flat = lambda pages: np.asarray(pages, np.float64)[table].transpose(1, 0, 2, 3).reshape(K, -1, H)  # noqa: E731
    at = np.arange(W * S)
    seen = (at <= position) & (at > position - (window or W * S))
    scores = np.einsum("kgh,kch->kgc", np.asarray(q, np.float64).reshape(K, G, H), flat(k_pages)[:, seen]) * H**-0.5
    if cap:
        scores = cap * np.tanh(scores / cap)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks.reshape(K, G, 1), (K, G, 1))], axis=2)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("kgc,kch->kgh", weights[..., : seen.sum()], flat(v_pages)[:, seen]).reshape(N, H)


def pages(rng: np.random.Generator, tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Random pages; those in no table are NaN, but for page 0, which is always finite."""
    k, v = (rng.standard_normal((P, K, S, H)).astype(np.float32) for _ in range(2))
    unused = np.setdiff1d(np.arange(1, P), tables)
    k[unused] = v[unused] = np.nan
    return k, v


def tables_for(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Scattered pages, the first one shared by all rows; entries past a row's tokens are 0."""
    tables = np.zeros((len(lengths), W), np.int32)
    ids = iter(rng.permutation(np.arange(2, P)))
    for row, length in enumerate(lengths):
        count = -(-length // S)
        tables[row, :count] = [1 if i == 0 else next(ids) for i in range(count)]
    return tables


def arguments(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array) for array in arrays]


@pytest.mark.parametrize(("window", "cap", "sunk"), OPTIONS)
def test_decode(window: int | None, cap: float | None, sunk: bool) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 7, 8, 9, 48, 33], np.int32)
    tables = tables_for(rng, lengths)
    k, v = pages(rng, tables)
    q = rng.standard_normal((len(lengths), N, H)).astype(np.float32)
    sinks = rng.standard_normal(N).astype(np.float32) if sunk else None
    found = decode(
        *arguments(q, k, v, tables, lengths), sliding_window=window, soft_cap=cap,
        sinks=None if sinks is None else jnp.asarray(sinks),
    )  # fmt: skip
    assert not np.asarray(found[0]).any()
    for row in range(1, len(lengths)):
        expected = oracle(q[row], k, v, tables[row], lengths[row] - 1, window, cap, sinks)
        np.testing.assert_allclose(found[row], expected, atol=2e-5)


@pytest.mark.parametrize(("window", "cap", "sunk"), OPTIONS)
def test_prefill(window: int | None, cap: float | None, sunk: bool) -> None:
    run = jax.jit(partial(prefill, sliding_window=window, soft_cap=cap))
    for chunks in CHUNKS:
        check_prefill(run, chunks, window, cap, sunk)


def check_prefill(run, chunks: tuple[int, ...], window: int | None, cap: float | None, sunk: bool) -> None:
    rng = np.random.default_rng(1)
    context = np.array([5, 3, 48, 20, 17], np.int32)
    offsets = np.concatenate([[0], np.cumsum(chunks)]).astype(np.int32)
    tables = tables_for(rng, context)
    k, v = pages(rng, tables)
    q = rng.standard_normal((70, N, H)).astype(np.float32)
    sinks = rng.standard_normal(N).astype(np.float32) if sunk else None
    given = arguments(q, k, v, tables, offsets, context)
    found = run(*given, sinks=None if sinks is None else jnp.asarray(sinks))
    assert np.isfinite(found).all()
    for row, chunk in enumerate(chunks):
        for i in range(chunk):
            at = offsets[row] + i
            expected = oracle(q[at], k, v, tables[row], context[row] - chunk + i, window, cap, sinks)
            np.testing.assert_allclose(found[at], expected, atol=2e-5)


def test_writes_go_to_their_slots_and_nowhere_else() -> None:
    rng = np.random.default_rng(2)
    k, v = (rng.standard_normal((P, K, S, H)).astype(np.float32) for _ in range(2))
    new_k, new_v = (rng.standard_normal((4, K, H)).astype(np.float32) for _ in range(2))
    slots = np.array([0, 17, 8 * 5 + 7, 8 * 47], np.int32)
    found_k, found_v = write_kv(*arguments(k, v, new_k, new_v, slots))
    for token, slot in enumerate(slots):
        k[slot // S, :, slot % S], v[slot // S, :, slot % S] = new_k[token], new_v[token]
    np.testing.assert_array_equal(found_k, k)
    np.testing.assert_array_equal(found_v, v)


def test_donated_pages_are_written_in_place() -> None:
    pages = jax.ShapeDtypeStruct((64, K, S, H), jnp.float32)
    new = jax.ShapeDtypeStruct((4, K, H), jnp.float32)
    slots = jax.ShapeDtypeStruct((4,), jnp.int32)
    memory = jax.jit(write_kv, donate_argnums=(0, 1)).lower(pages, pages, new, new, slots).compile().memory_analysis()
    cache = 2 * 64 * K * S * H * 4
    assert memory.alias_size_in_bytes >= cache and memory.temp_size_in_bytes < cache // 4


GOOD = {
    "q": (4, N, H), "k_pages": (P, K, S, H), "v_pages": (P, K, S, H),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": (4, 5, H)}, "heads"), ({"q": (4, N, 32)}, "head dimension"), ({"q": (4, H)}, "q must be"),
        ({"v_pages": (P, K, S, 32)}, "v_pages"), ({"lengths": (3,)}, "lengths"),
        ({"block_tables": (3, W)}, "block_tables"),
        ({"sinks": (2,)}, "sinks"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused_by_name(change: dict, words: str) -> None:
    shapes = GOOD | {"block_tables": (4, W), "lengths": (4,)} | change
    sinks = jnp.zeros(shapes.pop("sinks")) if "sinks" in shapes else None
    whole = {"block_tables", "lengths"}
    given = {name: jnp.zeros(s, jnp.int32 if name in whole else jnp.float32) for name, s in shapes.items()}
    with pytest.raises((ValueError, TypeError), match=words):
        decode(**given, sinks=sinks)


@pytest.mark.parametrize("option", [{"sliding_window": 0}, {"soft_cap": 0.0}, {"backend": "cudnn"}])
def test_options_out_of_range(option: dict) -> None:
    given = {name: jnp.zeros(shape) for name, shape in GOOD.items()}
    tables, lengths = jnp.zeros((4, W), jnp.int32), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=next(iter(option))):
        decode(**given, block_tables=tables, lengths=lengths, **option)


def test_types_must_agree() -> None:
    given = {name: jnp.zeros(shape, jnp.bfloat16 if name == "q" else jnp.float32) for name, shape in GOOD.items()}
    with pytest.raises(TypeError, match="one floating type"):
        decode(**given, block_tables=jnp.zeros((4, W), jnp.int32), lengths=jnp.zeros(4, jnp.int32))
