"""Causal attention over one whole sequence, without a cache: what forward passes outside the engine use."""

import jax
import jax.numpy as jnp

from jaxserve.models.decoder import Attend


def dense_attention(
    positions,  # [T] int
) -> Attend:
    """An `attend` for the tokens of one sequence at these positions; memory grows with T squared."""

    def attend(layer: int, q, k, v, *, sliding_window: int | None) -> jax.Array:
        tokens, heads, head_dim = q.shape
        kv_heads = k.shape[1]
        grouped = q.reshape(tokens, kv_heads, heads // kv_heads, head_dim)
        scores = jnp.einsum("tkgh,skh->kgts", grouped, k, preferred_element_type=jnp.float32) * head_dim**-0.5
        distance = positions[:, None] - positions[None]
        seen = distance >= 0
        if sliding_window is not None:
            seen = seen & (distance < sliding_window)
        weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf), axis=-1)
        out = jnp.einsum("kgts,skh->tkgh", weights.astype(v.dtype), v)
        return out.reshape(tokens, heads, head_dim)

    return attend
