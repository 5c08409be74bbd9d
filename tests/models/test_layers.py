"""Layers against their definitions, written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.models import RopeConfig, layers

rng = np.random.default_rng(0)


def normal(*shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def close(found, expected) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5, atol=2e-5)


def test_rms_norm_over_the_last_axis():
    for x in (normal(3, 8), normal(3, 2, 8)):
        weight = normal(8)
        close(layers.rms_norm(x, weight, 0.1), x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * weight)


def test_rms_norm_of_large_bfloat16_is_computed_in_float32():
    x = jnp.full((1, 4), 3e30, jnp.bfloat16)  # its square is beyond float32: the scale must still be finite elsewhere
    assert layers.rms_norm(x / 1e20, jnp.ones(4, jnp.bfloat16), 1e-6).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_projection_is_three_projections(bias):
    tokens, width, kv_heads, group, head = 5, 8, 2, 3, 4
    x, weight = normal(tokens, width), normal(width, kv_heads, group + 2, head)
    b = normal(kv_heads, group + 2, head) if bias else None
    q, k, v = layers.qkv(x, weight, b)
    assert q.shape == (tokens, kv_heads * group, head)
    for n in range(kv_heads * group):
        kv = n // group
        close(q[:, n], x @ weight[:, kv, n % group] + (b[kv, n % group] if bias else 0))
    for kv in range(kv_heads):
        close(k[:, kv], x @ weight[:, kv, group] + (b[kv, group] if bias else 0))
        close(v[:, kv], x @ weight[:, kv, group + 1] + (b[kv, group + 1] if bias else 0))


def test_attention_output_swiglu_and_logits():
    heads, wo, bias = normal(5, 6, 4), normal(2, 3, 4, 8), normal(8)
    close(layers.attention_output(heads, wo, bias), heads.reshape(5, 24) @ wo.reshape(24, 8) + bias)
    x, gate_up, down = normal(5, 8), normal(8, 2, 16), normal(16, 8)
    gate = x @ gate_up[:, 0]
    close(layers.swiglu(x, gate_up, down), (gate / (1 + np.exp(-gate)) * (x @ gate_up[:, 1])) @ down)
    table = normal(10, 8)
    close(layers.unembed(x, table.T), x @ table.T)
    close(layers.unembed_tied(x, table), x @ table.T)


def test_embedding_clamps_what_is_out_of_range():
    table = normal(4, 2)
    close(layers.embed(table, np.array([0, 3, 9], np.int32)), table[[0, 3, 3]])


def test_rotation_turns_pairs_by_the_position():
    x, positions = normal(3, 2, 8), np.array([0, 5, 1000], np.int32)
    out = np.asarray(layers.rotate(x, *layers.rope_table(positions, RopeConfig(theta=100.0), 8)))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, None, None] * 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], -1), atol=5e-4)


def test_scaled_frequencies_keep_the_fast_and_stretch_the_slow():
    plain = layers.rope_frequencies(RopeConfig(), 64)
    assert plain.dtype == np.float32
    close(layers.rope_frequencies(RopeConfig(kind="linear", factor=4.0), 64), plain / 4)
    for rope in (
        RopeConfig(kind="llama3", factor=8.0, original_max_position_embeddings=512),
        RopeConfig(kind="yarn", factor=8.0, original_max_position_embeddings=512),
        RopeConfig(kind="yarn", factor=8.0, original_max_position_embeddings=512, truncate=False),
    ):
        share = plain / layers.rope_frequencies(rope, 64)
        assert share[0] == pytest.approx(1.0)
        assert share[-1] == pytest.approx(8.0)
        assert (np.diff(share) >= -1e-5).all()


def test_yarn_scales_cosine_and_sine():
    cos, sin = layers.rope_table(np.zeros(1, np.int32), RopeConfig(attention_factor=1.5), 8)
    assert cos.tolist() == [[1.5] * 4]
    assert sin.tolist() == [[0.0] * 4]
