"""A Llama in Flax NNX, with the conventions of Hugging Face checkpoints.

Rotary embedding in halves (dimension i turns with i + H/2), RMS norm before attention and before the feed-forward,
SwiGLU, grouped-query attention, no biases, the output tied to the embedding. It sees whole rows and keeps no cache:
this is the side that trains. Shapes: B rows, T tokens, N query heads, K KV heads, H head dim, D model width, V
vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, under the names that `config.json` uses."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02


def _linear(d_in: int, d_out: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(d_in, d_out, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def rotate(x: jax.Array, theta: float) -> jax.Array:  # [B, T, heads, H]
    """Turns each pair (i, i + H/2) by an angle that grows with the token's position."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequencies[None, :]  # [T, H/2]
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    low, high = x[..., :half], x[..., half:]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


class Attention(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        q_width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        std = config.initializer_range
        self.q_proj = _linear(config.hidden_size, q_width, std, rngs)
        self.k_proj = _linear(config.hidden_size, kv_width, std, rngs)
        self.v_proj = _linear(config.hidden_size, kv_width, std, rngs)
        self.o_proj = _linear(q_width, config.hidden_size, std / (2 * config.num_hidden_layers) ** 0.5, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        c, (B, T, _) = self.config, x.shape
        q = rotate(self.q_proj(x).reshape(B, T, c.num_attention_heads, c.head_dim), c.rope_theta)
        k = rotate(self.k_proj(x).reshape(B, T, c.num_key_value_heads, c.head_dim), c.rope_theta)
        v = self.v_proj(x).reshape(B, T, c.num_key_value_heads, c.head_dim)
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True)  # query heads share KV heads in groups
        return self.o_proj(out.reshape(B, T, -1))


class FeedForward(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        std = config.initializer_range
        self.gate_proj = _linear(config.hidden_size, config.intermediate_size, std, rngs)
        self.up_proj = _linear(config.hidden_size, config.intermediate_size, std, rngs)
        down_std = std / (2 * config.num_hidden_layers) ** 0.5
        self.down_proj = _linear(config.intermediate_size, config.hidden_size, down_std, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    def __init__(self, config: LlamaConfig, dropout: float, rngs: nnx.Rngs) -> None:
        self.input_layernorm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
        self.mlp = FeedForward(config, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        x = x + self.dropout(self.self_attn(self.input_layernorm(x)))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nnx.Module):
    """Token ids in, float32 logits out. `model.train()` turns dropout on, `model.eval()` turns it off."""

    def __init__(self, config: LlamaConfig, *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.normal(config.initializer_range)
        self.embed_tokens = nnx.Embed(config.vocab_size, config.hidden_size, embedding_init=init, rngs=rngs)
        self.layers = nnx.List([Layer(config, dropout, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:  # [B, T] -> [B, T, V]
        x = self.dropout(self.embed_tokens(tokens))
        for layer in self.layers:
            x = layer(x)
        return self.embed_tokens.attend(self.norm(x))
