"""New keys and values go to their slots, and the pages are changed where they lie."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.pages import Pages
from kernels_pallas.write_kv import write

K, H, S, P = 2, 16, 8, 48


def test_writes_go_to_their_slots_and_nowhere_else() -> None:
    rng = np.random.default_rng(2)
    k, v = (rng.standard_normal((P, K, S, H)).astype(np.float32) for _ in range(2))
    new_k, new_v = (rng.standard_normal((4, K, H)).astype(np.float32) for _ in range(2))
    slots = np.array([0, 17, 8 * 5 + 7, 8 * 47], np.int32)
    found = write(Pages(jnp.asarray(k), jnp.asarray(v)), *(jnp.asarray(array) for array in (new_k, new_v, slots)))
    for token, slot in enumerate(slots):
        k[slot // S, :, slot % S], v[slot // S, :, slot % S] = new_k[token], new_v[token]
    np.testing.assert_array_equal(found.keys, k)
    np.testing.assert_array_equal(found.values, v)
    assert found.key_scales is None and found.value_scales is None


def test_donated_pages_are_written_in_place() -> None:
    pages = Pages(*[jax.ShapeDtypeStruct((64, K, S, H), jnp.float32)] * 2)
    new = jax.ShapeDtypeStruct((4, K, H), jnp.float32)
    slots = jax.ShapeDtypeStruct((4,), jnp.int32)
    memory = jax.jit(write, donate_argnums=0).lower(pages, new, new, slots).compile().memory_analysis()
    cache = 2 * 64 * K * S * H * 4
    assert memory.alias_size_in_bytes >= cache and memory.temp_size_in_bytes < cache // 4


QUANTISED = ["float8_e4m3fn", "int8"]
jitted = jax.jit(write)


def write_half(
    pages: jax.Array, scales: jax.Array, x: np.ndarray, slots: np.ndarray, firsts: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """The keys' half of a write of x as keys and as values; both halves are the same."""
    found = jitted(Pages(pages, pages, scales, scales), x, x, slots, firsts)
    for key, value in zip(found[::2], found[1::2], strict=True):
        assert np.asarray(key).tobytes() == np.asarray(value).tobytes()
    return found.keys, found.key_scales


def numbers(pages: jax.Array, scales: jax.Array) -> np.ndarray:
    return np.asarray(pages.astype(jnp.float32)) * np.asarray(scales)[:, :, None, None]


def empty(dtype: str) -> tuple[jax.Array, jax.Array]:
    """Pages and scales that others have left."""
    return jnp.full((P, K, S, H), 3, dtype), jnp.full((P, K), 2.0**20, jnp.float32)


@pytest.mark.parametrize("dtype", QUANTISED)
def test_a_page_that_fills_token_by_token_stays_within_its_type(dtype: str) -> None:
    """Each token up to four times as large as the one before, so that most of them make the scale grow."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((S, K, H)) * rng.uniform(1.0, 4.0, S).cumprod()[:, None, None]).astype(np.float32)
    x[3] = 0.0
    pages, scales = empty(dtype)
    for t in range(S):
        pages, scales = write_half(pages, scales, x[t : t + 1], np.array([5 * S + t], np.int32), np.zeros(1, np.int32))
    found, scale = numbers(pages, scales)[5], np.asarray(scales)[5, :, None, None]
    wanted = x.transpose(1, 0, 2)
    bound = scale if dtype == "int8" else np.maximum(2.0**-4 * np.abs(wanted), 2.0**-9 * scale)
    assert np.all(np.abs(found - wanted) <= bound)
    largest = np.abs(wanted).max(axis=(1, 2))
    assert np.all(largest <= scale[:, 0, 0] * (448 if dtype != "int8" else 127)), "nothing is clipped"
    assert np.all(np.log2(scale) % 1 == 0)
    others = np.delete(np.asarray(scales), 5, axis=0)
    assert np.all(others == 2.0**20) and np.all(np.delete(np.asarray(pages, np.float32), 5, axis=0) == 3)


def test_float8_pages_do_not_tell_in_how_many_calls_they_were_written() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2 * S, K, H)).astype(np.float32) * np.linspace(0.2, 3.0, 2 * S)[:, None, None]
    x = x.astype(np.float32)
    slots = np.concatenate([7 * S + np.arange(S), 3 * S + np.arange(S)]).astype(np.int32)
    results = []
    for cuts in ([0, 2 * S], [0, 3, S, S + 1, 2 * S], list(range(2 * S + 1))):
        pages, scales = empty("float8_e4m3fn")
        for begin, end in itertools.pairwise(cuts):
            pages, scales = write_half(pages, scales, x[begin:end], slots[begin:end], np.zeros(1, np.int32))
        results.append(numbers(pages, scales)[[7, 3]])
    large = np.abs(results[0]) >= 2.0**-4 * np.asarray(results[0]).max() / 448 * 2  # subnormals round twice
    for other in results[1:]:
        np.testing.assert_array_equal(results[0][large], other[large])


def test_rows_of_a_call_do_not_disturb_each_other() -> None:
    """Two that go on in pages of their own, one that begins, padding, and an index that points at no row's first."""
    rng = np.random.default_rng(8)
    pages, scales = empty("int8")
    old = rng.standard_normal((4, K, H)).astype(np.float32)
    first = np.array([2 * S, 2 * S + 1, 9 * S, 9 * S + 1], np.int32)
    pages, scales = write_half(pages, scales, old, first, np.array([0, 2], np.int32))
    new = rng.standard_normal((6, K, H)).astype(np.float32) * np.array([50, 0.1, 1, 1, 7, 7], np.float32)[:, None, None]
    slots = np.array([2 * S + 2, 9 * S + 2, 4 * S, 4 * S + 1, 0, 0], np.int32)
    pages, scales = write_half(pages, scales, new, slots, np.array([0, 1, 2, 4, 5, 5], np.int32))
    found, scales = numbers(pages, scales), np.asarray(scales)
    for page, rows in ((2, [old[0], old[1], new[0]]), (9, [old[2], old[3], new[1]]), (4, [new[2], new[3]])):
        for at, row in enumerate(rows):
            assert np.all(np.abs(found[page, :, at] - row) <= scales[page, :, None]), (page, at)
    assert np.all(scales[2] > 8 * scales[9])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", *QUANTISED])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("of", ["key", "value"])
def test_what_is_not_finite_is_a_nan_among_the_keys_and_none_among_the_values(dtype: str, bad: float, of: str) -> None:
    """In its own place only; on pages of int8, which has no NaN, the scale of the page's keys is."""
    given = {"key": np.ones((2, K, H), np.float32), "value": np.ones((2, K, H), np.float32)}
    given[of][0, 0, 3] = bad
    quantised = dtype in QUANTISED
    pages = jnp.full((P, K, S, H), 3, dtype)
    scales = [jnp.full((P, K), 2.0**20, jnp.float32)] * 2 if quantised else []
    new = [jnp.asarray(x, jnp.float32 if quantised else dtype) for x in given.values()]
    found = jitted(Pages(pages, pages, *scales), *new, np.array([S, S + 1], np.int32), np.zeros(1, np.int32))
    keys, values = (np.asarray(x, np.float32) for x in (found.keys, found.values))
    if quantised:
        keys, values = (
            numbers(half, s) for half, s in ((found.keys, found.key_scales), (found.values, found.value_scales))
        )
    spoilt = np.zeros((K, 2, H), bool)
    spoilt[0, 0, 3] = True
    wanted = np.where(spoilt & (of == "value"), 0.0, 1.0)
    assert np.all(np.abs(values[1, :, :2] - wanted) <= 2.0**-6) and np.isfinite(values).all()
    if dtype == "int8":
        spoilt[0] = True
        np.testing.assert_array_equal(np.isnan(np.asarray(found.key_scales)[1]), [True, False])
    np.testing.assert_array_equal(np.isnan(keys[1, :, :2]), spoilt)
    assert np.all(np.abs(keys[1, :, :2][~spoilt] - 1.0) <= 2.0**-6)
    assert np.all(np.delete(keys, 1, axis=0) == np.delete(keys, 1, axis=0)[0, 0, 0, 0])
    again = jitted(found, *(jnp.ones_like(x) for x in new), np.array([S, S + 1], np.int32), np.zeros(1, np.int32))
    assert np.isfinite(np.asarray(again.keys, np.float32)[1, :, :2]).all()
    assert not quantised or np.isfinite(np.asarray(again.key_scales)).all(), "the page's next sequence begins anew"


def test_donated_pages_of_8_bits_are_written_in_place() -> None:
    """On the CPU only those of int8; for a GPU tests/bench/compile/test_compile.py looks at both."""
    shape = jax.ShapeDtypeStruct
    pages = Pages(*[shape((512, K, S, H), jnp.int8)] * 2, *[shape((512, K), jnp.float32)] * 2)
    new, slots = shape((4, K, H), jnp.float32), shape((4,), jnp.int32)
    memory = jax.jit(write, donate_argnums=0).lower(pages, new, new, slots, slots).compile().memory_analysis()
    cache = 2 * 512 * K * (S * H + 4)
    assert memory.alias_size_in_bytes >= cache and memory.temp_size_in_bytes < cache // 4


def test_pages_of_8_bits_need_to_know_where_rows_begin() -> None:
    pages, scales = empty("int8")
    x, slots = jnp.ones((1, K, H)), jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="firsts is missing: pages of int8 need"):
        write(Pages(pages, pages, scales, scales), x, x, slots)
