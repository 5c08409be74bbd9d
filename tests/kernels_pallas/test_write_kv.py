"""New keys and values go to their slots, and the pages are changed where they lie."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.write_kv import write_kv

K, H, S, P = 2, 16, 8, 48


def test_writes_go_to_their_slots_and_nowhere_else() -> None:
    rng = np.random.default_rng(2)
    k, v = (rng.standard_normal((P, K, S, H)).astype(np.float32) for _ in range(2))
    new_k, new_v = (rng.standard_normal((4, K, H)).astype(np.float32) for _ in range(2))
    slots = np.array([0, 17, 8 * 5 + 7, 8 * 47], np.int32)
    found_k, found_v = write_kv(*(jnp.asarray(array) for array in (k, v, new_k, new_v, slots)))
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
