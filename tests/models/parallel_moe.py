"""An architecture that is no cousin of Llama: what a model's file looks like.

Learned positions instead of rotary ones; LayerNorm with bias; attention and the MLP read the same input side by side;
each token takes one of E experts, with GELU and biases; the embedding is the output layer. Its checkpoints store
queries, keys and values as one tensor, and each expert as tensors of its own.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.core.fields import Fields
from jaxserve.models import Attend, Decoder, ModelConfig, Params, layers
from jaxserve.models.contract import contract, take_rows
from jaxserve.models.leaves import Axes, Leaf


@dataclass(frozen=True)
class Experts:
    """`ModelConfig.extra` of this architecture."""

    count: int


class ParallelMoe(Decoder):
    hf_architecture = "ParallelMoeForCausalLM"
    hf_model_type = "parallel_moe"

    def read_config(self, fields: Fields) -> dict[str, Any]:
        return {
            "rms_norm_eps": fields.number("layer_norm_epsilon"),
            "tie_word_embeddings": True,
            "extra": Experts(fields.integer("num_experts")),
        }

    def check_config(self, fields: Fields) -> None:
        if (activation := fields.get("hidden_act")) != "gelu":
            fields.fail(f"hidden_act {activation!r}", "supported: 'gelu'")

    def axes(self, config: ModelConfig) -> Axes:
        return Axes({**super().axes(config), "E": config.extra.count, "P": config.max_position_embeddings})

    def leaves(self, config: ModelConfig) -> Any:
        axes, prefix = self.axes(config), "transformer."
        return {
            "embed": axes.matrix("V D", "D", axes.stored(prefix + "wte.weight", "V D")),
            "positions": axes.matrix("P D", "D", axes.stored(prefix + "wpe.weight", "P D"), share=0.0),
            "layers": [self._layer_leaves(config, axes, f"{prefix}h.{i}.") for i in range(config.num_layers)],
            "norm": axes.norm("D", axes.stored(prefix + "ln_f.weight", "D")),
            "norm_bias": axes.bias("D", axes.stored(prefix + "ln_f.bias", "D")),
        }

    def _layer_leaves(self, config: ModelConfig, axes: Axes, prefix: str) -> dict[str, Leaf]:
        attention, router, experts = prefix + "attn.", prefix + "mlp.router.weight", range(config.extra.count)
        expert, share = prefix + "mlp.experts.{}.", 1 / config.extra.count
        up_weight, up_bias, down_weight, down_bias = (
            [(i, expert.format(i) + name) for i in experts]
            for name in ("up.weight", "up.bias", "down.weight", "down.bias")
        )
        return {
            "norm": axes.norm("D", axes.stored(prefix + "ln.weight", "D")),
            "norm_bias": axes.bias("D", axes.stored(prefix + "ln.bias", "D")),
            "wqkv": axes.matrix("D K G+2 H", "D", axes.linear(attention + "qkv.weight", "K G+2 H", "D")),
            "bqkv": axes.bias("K G+2 H", axes.vector(attention + "qkv.bias", "K G+2 H")),
            "wo": axes.matrix("K G H D", "K G H", axes.linear(attention + "dense.weight", "D", "K G H")),
            "router": axes.matrix("D E", "D", axes.linear(router, "E", "D")),
            "w_up": axes.matrix("E D F", "D", *(axes.linear(n, "F", "D", (i,)) for i, n in up_weight), share=share),
            "b_up": axes.bias("E F", *(axes.stored(n, "F", (i,)) for i, n in up_bias)),
            "w_down": axes.matrix("E F D", "F", *(axes.linear(n, "D", "F", (i,)) for i, n in down_weight), share=share),
            "b_down": axes.bias("E D", *(axes.stored(n, "D", (i,)) for i, n in down_bias)),
        }

    def _embed(self, params: Params, config: ModelConfig, tokens, positions) -> jax.Array:
        return super()._embed(params, config, tokens, positions) + take_rows(params["positions"], positions)

    def _rope(self, config: ModelConfig, positions) -> None:
        """None: `_embed` has added the positions."""

    def _norm(self, leaves: Params, name: str, config: ModelConfig, x) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + config.rms_norm_eps)
        return (centred * scale).astype(x.dtype) * leaves[name][None] + leaves[name + "_bias"][None]

    def _layer(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows=None) -> jax.Array:
        normal = self._norm(layer, "norm", config, x)
        attended = self._attention(layer, config, normal, rope, attend, index, rows)
        if rows is not None:
            x, normal = x[rows], normal[rows]
        return x + attended + self._mlp(layer, config, normal)

    def _attention(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows) -> jax.Array:
        q, k, v = layers.qkv(x, layer["wqkv"], layer["bqkv"])
        out = attend(index, q if rows is None else q[rows], k, v, sliding_window=None)
        return layers.attention_output(out, layer["wo"])

    def _mlp(self, layer: Params, config: ModelConfig, x) -> jax.Array:
        """All experts are computed and one is kept: enough for a test."""
        chances = jax.nn.softmax(contract("td,de->te", x, layer["router"], jnp.float32), axis=-1)
        best = jax.nn.one_hot(jnp.argmax(chances, axis=-1), config.extra.count, dtype=chances.dtype)
        inner = jax.nn.gelu(contract("td,edf->tef", x, layer["w_up"]) + layer["b_up"][None], approximate=False)
        out = contract("tef,efd->ted", inner, layer["w_down"]) + layer["b_down"][None]
        return jnp.sum(out * (best * chances).astype(x.dtype)[:, :, None], axis=1)
