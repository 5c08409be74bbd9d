"""New keys and values into their pages, in place where the pages are donated.

XLA's scatter updates a donated buffer without a copy (float32 on every version; bfloat16 on the CPU from JAX 0.11).
"""

import jax


def write_kv(
    k_pages: jax.Array,  # [P, K, S, H]
    v_pages: jax.Array,  # [P, K, S, H]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    slots: jax.Array,  # [T] int32
) -> tuple[jax.Array, jax.Array]:
    """The pages with token t's key and value at slot `slots[t]` = page * S + offset.

    Padding tokens are given a slot of page 0, the scratch page; which of them stays there does not matter.
    """
    size = k_pages.shape[2]
    mode = "promise_in_bounds"
    with jax.named_scope("write_kv"):
        pages, offsets = slots // size, slots % size
        return (
            k_pages.at[pages, :, offsets].set(k.astype(k_pages.dtype), mode=mode),
            v_pages.at[pages, :, offsets].set(v.astype(v_pages.dtype), mode=mode),
        )
