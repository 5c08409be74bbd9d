"""The decoder that Llama, Qwen2, Qwen3 and Mistral share: they differ in a few switches of the configuration.

Parameters are a plain pytree with few leaves, each matrix fused with those that read the same input:

    {"embed": [V, D], "layers": [layer, ...], "norm": [D], "lm_head": [D, V] unless tied}
    layer = {"attn_norm": [D], "wqkv": [D, K, G+2, H], "wo": [K, G, H, D],
             "mlp_norm": [D], "w_gate_up": [D, 2, F], "w_down": [F, D]}
            and, where the configuration says so, "bqkv": [K, G+2, H], "bo": [D], "q_norm": [H], "k_norm": [H]

`wqkv` holds for each KV head its G query heads, then its key, then its value: one matmul, shardable on K.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from jaxserve.core.fields import Fields
from jaxserve.models import layers
from jaxserve.models.config import ModelConfig

Params = dict[str, Any]
Axes = tuple[str, ...]


class Attend(Protocol):
    """Given by the runtime: stores the new keys and values of a layer and attends over what the tokens may see.

    There are fewer queries than keys where only some tokens' outputs are wanted: those of `Decoder.ending`'s rows.
    """

    def __call__(
        self,
        layer: int,
        q: jax.Array,  # [T or R, N, H]
        k: jax.Array,  # [T, K, H]
        v: jax.Array,  # [T, K, H]
        *,
        sliding_window: int | None,
    ) -> jax.Array:  # [T or R, N, H]
        ...


class Decoder:
    """Base of the architectures. It has no state: the configuration and the parameters are arguments."""

    hf_architecture: ClassVar[str]
    hf_model_type: ClassVar[str]
    hf_defaults: ClassVar[Mapping[str, Any]] = {}
    """What a key means that a `config.json` leaves out, where it is not what it means in other architectures."""

    def read_config(self, fields: Fields) -> dict[str, Any]:
        """The `ModelConfig` fields that only this architecture knows how to read."""
        return {}

    def forward(
        self,
        params: Params,
        config: ModelConfig,
        tokens,  # [T] int
        positions,  # [T] int
        attend: Attend,
    ) -> jax.Array:
        """Hidden states after the final norm, [T, D]: `body` and `ending` for every token."""
        x = self.body(params, config, tokens, positions, attend)
        return self.ending(params, config, x, positions, attend)

    def body(
        self,
        params: Params,
        config: ModelConfig,
        tokens,  # [T] int
        positions,  # [T] int
        attend: Attend,
    ) -> jax.Array:
        """What goes into the last layer, [T, D]."""
        with jax.named_scope("embed"):
            x = layers.embed(params["embed"], tokens)
            rope = layers.rope_table(positions, config.rope, config.head_dim)
        for index, layer in enumerate(params["layers"][:-1]):
            x = self._layer(layer, config, x, rope, attend, index)
        return x

    def ending(
        self,
        params: Params,
        config: ModelConfig,
        x,  # [T, D] as `body` gives it
        positions,  # [T] int
        attend: Attend,
        rows=None,  # [R] int, which of the T
    ) -> jax.Array:
        """The last layer and the final norm, [R, D]; [T, D] without `rows`.

        Of a token that is not in `rows` the last layer needs the key and the value, and nothing else: its attention and
        its feed-forward would be computed for nobody. (So is its query, which comes with those by one matmul.)
        """
        with jax.named_scope("embed"):  # of `body` and `ending` in one program XLA makes one table
            rope = layers.rope_table(positions, config.rope, config.head_dim)
        x = self._layer(params["layers"][-1], config, x, rope, attend, config.num_layers - 1, rows)
        with jax.named_scope("norm"):
            return layers.rms_norm(x, params["norm"], config.rms_norm_eps)

    def logits(
        self,
        params: Params,
        config: ModelConfig,
        hidden,  # [R, D]
    ) -> jax.Array:
        """[R, V] float32."""
        if config.tie_word_embeddings:
            return layers.unembed_tied(hidden, params["embed"])
        return layers.unembed(hidden, params["lm_head"])

    def leaf_axes(self, config: ModelConfig) -> Any:
        """The pytree of parameters with each leaf's axes by name: what shapes and shardings are derived from."""
        layer: dict[str, Axes] = {
            "attn_norm": ("D",),
            "wqkv": ("D", "K", "G+2", "H"),
            "wo": ("K", "G", "H", "D"),
            "mlp_norm": ("D",),
            "w_gate_up": ("D", "2", "F"),
            "w_down": ("F", "D"),
        }
        if config.qkv_bias:
            layer["bqkv"] = ("K", "G+2", "H")
        if config.output_bias:
            layer["bo"] = ("D",)
        if config.qk_norm:
            layer |= {"q_norm": ("H",), "k_norm": ("H",)}
        tree = {"embed": ("V", "D"), "layers": [dict(layer) for _ in range(config.num_layers)], "norm": ("D",)}
        return tree if config.tie_word_embeddings else tree | {"lm_head": ("D", "V")}

    def abstract_params(self, config: ModelConfig, dtype) -> Any:
        """The pytree of parameters as `jax.ShapeDtypeStruct`s."""
        size = {
            "V": config.vocab_size, "D": config.hidden_size, "F": config.intermediate_size, "H": config.head_dim,
            "K": config.num_kv_heads, "G": config.group_size, "G+2": config.group_size + 2, "2": 2,
        }  # fmt: skip
        return jax.tree.map(
            lambda axes: jax.ShapeDtypeStruct(tuple(size[axis] for axis in axes), dtype),
            self.leaf_axes(config),
            is_leaf=lambda node: isinstance(node, tuple),
        )

    def _layer(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows=None) -> jax.Array:
        with jax.named_scope(f"layer_{index}/attention"):
            normal = layers.rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
            attended = self._attention(layer, config, normal, rope, attend, index, rows)
            x = (x if rows is None else x[rows]) + attended
        with jax.named_scope(f"layer_{index}/mlp"):
            normal = layers.rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
            return x + layers.swiglu(normal, layer["w_gate_up"], layer["w_down"])

    def _attention(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows) -> jax.Array:
        q, k, v = layers.qkv(x, layer["wqkv"], layer.get("bqkv"))
        turned = rope
        if rows is not None:
            q, turned = q[rows], (rope[0][rows], rope[1][rows])
        if config.qk_norm:
            q = layers.rms_norm(q, layer["q_norm"], config.rms_norm_eps)
            k = layers.rms_norm(k, layer["k_norm"], config.rms_norm_eps)
        q, k = layers.rotate(q, *turned), layers.rotate(k, *rope)
        out = attend(index, q, k, v, sliding_window=config.sliding_window[index])
        return layers.attention_output(out, layer["wo"], layer.get("bo"))
