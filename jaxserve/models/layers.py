"""The layers that decoders are assembled from: plain functions on arrays.

They see one flat run of tokens, [T, D], from however many sequences: only attention, which the runtime supplies, knows
where one ends. Products with weights go through `contract`. Activations keep the type of the weights; normalisation,
rotation and logits are computed in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.models.config import RopeConfig
from jaxserve.models.contract import contract, merge_axes, take_rows


def embed(
    table,  # [V, D]
    tokens,  # [T] int
) -> jax.Array:
    """[T, D]. Ids out of range are clamped: they are refused long before a program runs."""
    return take_rows(table, tokens)


def rms_norm(
    x,  # [..., D]
    weight,  # [D]
    eps: float,
) -> jax.Array:
    """x over its root mean square, times the weight. Also per head: D is whatever the last axis is."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale).astype(x.dtype) * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


def qkv(
    x,  # [T, D]
    weight,  # [D, K, G + 2, H]
    bias=None,  # [K, G + 2, H]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [T, N, H], keys [T, K, H], values [T, K, H], by one matmul."""
    heads = contract("td,dkgh->tkgh", x, weight)
    if bias is not None:
        heads = heads + bias[None]
    tokens, kv_heads, group, head_dim = heads.shape
    q = heads[:, :, : group - 2].reshape(tokens, kv_heads * (group - 2), head_dim)
    return q, heads[:, :, group - 2], heads[:, :, group - 1]


def attention_output(
    x,  # [T, N, H]
    weight,  # [K, G, H, D]
    bias=None,  # [D]
) -> jax.Array:
    """[T, D]."""
    # Flat on purpose: an einsum over three axes lets XLA reorder them, and copy the weight to match at every step.
    out = contract("ti,id->td", x.reshape(x.shape[0], -1), merge_axes(weight, 3))
    return out if bias is None else out + bias[None]


def swiglu(
    x,  # [T, D]
    w_gate_up,  # [D, 2, F]
    w_down,  # [F, D]
) -> jax.Array:
    """[T, D]: silu(x gate) * (x up), down."""
    gate_up = contract("td,dcf->tcf", x, w_gate_up)
    return contract("tf,fd->td", jax.nn.silu(gate_up[:, 0]) * gate_up[:, 1], w_down)


def unembed(
    x,  # [R, D]
    lm_head,  # [D, V]
) -> jax.Array:
    """Logits [R, V] in float32."""
    return contract("rd,dv->rv", x, lm_head, jnp.float32)


def unembed_tied(
    x,  # [R, D]
    table,  # [V, D]
) -> jax.Array:
    """Logits [R, V] in float32, from the embedding table."""
    return contract("rd,vd->rv", x, table, jnp.float32)


def rope_table(
    positions,  # [T] int
    rope: RopeConfig,
    head_dim: int,
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each token's angles, [T, H / 2] each, float32."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(rope_frequencies(rope, head_dim))[None]
    table = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) * rope.attention_factor
    # XLA on the CPU would compute them again in every layer for every head (64 tokens, 8 layers of 12 heads, JAX 0.10:
    # 2.3 ms instead of 0.1). It does not look through a gather, even one that takes every row in turn.
    table = jnp.take(table, jnp.arange(table.shape[0]), axis=0, mode="clip")
    return table[:, : head_dim // 2], table[:, head_dim // 2 :]


def rotate(
    x,  # [T, heads, H]
    cos,  # [T, H / 2]
    sin,  # [T, H / 2]
) -> jax.Array:
    """Turn each pair (i, i + H / 2) of dimensions by its angle; [T, heads, H]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Radians a position for each pair of dimensions, [H / 2] float32, fastest first."""
    plain = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    slowed = plain / rope.factor
    if rope.kind == "default":
        scaled = plain
    elif rope.kind == "linear":
        scaled = slowed
    else:
        keep = _llama3_keep(rope, plain) if rope.kind == "llama3" else _yarn_keep(rope, head_dim)
        scaled = keep * plain + (1.0 - keep) * slowed
    return scaled.astype(np.float32)


def _llama3_keep(rope: RopeConfig, plain: np.ndarray) -> np.ndarray:
    """Share of the unscaled frequency: 1 for short wavelengths, 0 for long ones, a ramp in the turns between."""
    assert rope.original_max_position_embeddings is not None
    turns = rope.original_max_position_embeddings * plain / (2 * np.pi)
    return np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)


def _yarn_keep(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Share of the unscaled frequency: a ramp over the dimensions between beta_fast and beta_slow turns."""
    original = rope.original_max_position_embeddings
    assert original is not None

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    return 1.0 - np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)
