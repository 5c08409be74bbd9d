"""The decoder that Llama, Qwen2, Qwen3 and Mistral share: they differ in a few switches of the configuration.

Another architecture is a subclass in one file. It declares its parameters (`leaves`), and overrides the parts of the
computation that differ: `_embed`, `_rope`, `_norm`, `_attention`, `_mlp`, `_layer`, `logits`.

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
from jaxserve.models.leaves import ALL, Axes, Leaf

Params = dict[str, Any]


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
        """The `ModelConfig` fields that only this architecture knows how to read; they replace those read for all."""
        return {}

    def check_config(self, fields: Fields) -> None:
        """Refuse what a `config.json` asks for and `_mlp` does not compute, by `fields.fail`."""
        activation = fields.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            fields.fail(f"hidden_act {activation!r}", "supported: 'silu'")
        if fields.flag("mlp_bias", False):
            fields.fail("mlp_bias true", "supported: an MLP without bias")

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
            x, rope = self._embed(params, config, tokens, positions), self._rope(config, positions)
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

        Of a token that is not in `rows` the last layer needs the key and the value only: nothing reads its output. (Its
        query is computed all the same, by the matmul that computes those.)
        """
        with jax.named_scope("embed"):  # of `body` and `ending` in one program XLA makes one table
            rope = self._rope(config, positions)
        x = self._layer(params["layers"][-1], config, x, rope, attend, config.num_layers - 1, rows)
        with jax.named_scope("norm"):
            return self._norm(params, "norm", config, x)

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

    def axes(self, config: ModelConfig) -> Axes:
        """The sizes of the axes that leaves are declared over."""
        return Axes(
            {
                "V": config.vocab_size, "D": config.hidden_size, "F": config.intermediate_size, "H": config.head_dim,
                "K": config.num_kv_heads, "G": config.group_size, "G+2": config.group_size + 2, "2": 2,
            }
        )  # fmt: skip

    def leaves(self, config: ModelConfig) -> Any:
        """The pytree of parameters with a `Leaf` in the place of each array."""
        axes, tied = self.axes(config), config.tie_word_embeddings
        table = axes.stored("model.embed_tokens.weight", "V D")
        tree = {
            "embed": axes.matrix("V D", "D", table, share=float(tied)),
            "layers": [self._layer_leaves(config, axes, f"model.layers.{i}.") for i in range(config.num_layers)],
            "norm": axes.norm("D", axes.stored("model.norm.weight", "D")),
        }
        return tree if tied else tree | {"lm_head": axes.matrix("D V", "D", axes.linear("lm_head.weight", "V", "D"))}

    def ignores(self, config: ModelConfig, name: str) -> bool:
        """Whether a checkpoint may hold this tensor although no leaf reads it."""
        return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")

    def leaf_axes(self, config: ModelConfig) -> Any:
        """The pytree of parameters with the names of each array's axes: what shardings are derived from."""
        return jax.tree.map(lambda leaf: leaf.axes, self.leaves(config))

    def abstract_params(self, config: ModelConfig, dtype) -> Any:
        """The pytree of parameters as `jax.ShapeDtypeStruct`s."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), self.leaves(config))

    def _layer_leaves(self, config: ModelConfig, axes: Axes, prefix: str) -> dict[str, Leaf]:
        """One layer's leaves; `prefix` begins the names of its stored tensors."""
        attention, mlp, group = prefix + "self_attn.", prefix + "mlp.", config.group_size
        layer = {
            "attn_norm": axes.norm("D", axes.stored(prefix + "input_layernorm.weight", "D")),
            "wqkv": axes.matrix(
                "D K G+2 H", "D",
                axes.linear(attention + "q_proj.weight", "K G H", "D", (ALL, ALL, slice(group))),
                axes.linear(attention + "k_proj.weight", "K H", "D", (ALL, ALL, group)),
                axes.linear(attention + "v_proj.weight", "K H", "D", (ALL, ALL, group + 1)),
            ),
            "wo": axes.matrix("K G H D", "K G H", axes.linear(attention + "o_proj.weight", "D", "K G H")),
            "mlp_norm": axes.norm("D", axes.stored(prefix + "post_attention_layernorm.weight", "D")),
            "w_gate_up": axes.matrix(
                "D 2 F", "D",
                axes.linear(mlp + "gate_proj.weight", "F", "D", (ALL, 0)),
                axes.linear(mlp + "up_proj.weight", "F", "D", (ALL, 1)),
            ),
            "w_down": axes.matrix("F D", "F", axes.linear(mlp + "down_proj.weight", "D", "F")),
        }  # fmt: skip
        if config.qkv_bias:
            layer["bqkv"] = axes.bias(
                "K G+2 H",
                axes.vector(attention + "q_proj.bias", "K G H", (ALL, slice(group))),
                axes.vector(attention + "k_proj.bias", "K H", (ALL, group)),
                axes.vector(attention + "v_proj.bias", "K H", (ALL, group + 1)),
            )
        if config.output_bias:
            layer["bo"] = axes.bias("D", axes.stored(attention + "o_proj.bias", "D"))
        if config.qk_norm:
            layer["q_norm"] = axes.norm("H", axes.stored(attention + "q_norm.weight", "H"))
            layer["k_norm"] = axes.norm("H", axes.stored(attention + "k_norm.weight", "H"))
        return layer

    def _embed(self, params: Params, config: ModelConfig, tokens, positions) -> jax.Array:
        """What goes into the first layer, [T, D]."""
        return layers.embed(params["embed"], tokens)

    def _rope(self, config: ModelConfig, positions) -> Any:
        """What `_attention` rotates queries and keys by; here a cosine and a sine for each token, [T, H / 2] each."""
        return layers.rope_table(positions, config.rope, config.head_dim)

    def _layer(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows=None) -> jax.Array:
        """[R, D]: what layer `index` makes of x [T, D] for the tokens in `rows`; [T, D] without `rows`."""
        with jax.named_scope(f"layer_{index}/attention"):
            normal = self._norm(layer, "attn_norm", config, x)
            attended = self._attention(layer, config, normal, rope, attend, index, rows)
            x = (x if rows is None else x[rows]) + attended
        with jax.named_scope(f"layer_{index}/mlp"):
            return x + self._mlp(layer, config, self._norm(layer, "mlp_norm", config, x))

    def _norm(self, leaves: Params, name: str, config: ModelConfig, x) -> jax.Array:
        """x [..., D] normalised with the leaf of this name."""
        return layers.rms_norm(x, leaves[name], config.rms_norm_eps)

    def _attention(self, layer: Params, config: ModelConfig, x, rope, attend: Attend, index: int, rows) -> jax.Array:
        """[R, D]; [T, D] without `rows`. It calls `attend` once, with the keys and values of every token."""
        q, k, v = layers.qkv(x, layer["wqkv"], layer.get("bqkv"))
        turned = rope
        if rows is not None:
            q, turned = q[rows], (rope[0][rows], rope[1][rows])
        if config.qk_norm:
            q, k = self._norm(layer, "q_norm", config, q), self._norm(layer, "k_norm", config, k)
        q, k = layers.rotate(q, *turned), layers.rotate(k, *rope)
        out = attend(index, q, k, v, sliding_window=config.sliding_window[index])
        return layers.attention_output(out, layer["wo"], layer.get("bo"))

    def _mlp(self, layer: Params, config: ModelConfig, x) -> jax.Array:
        """[R, D] of x [R, D]."""
        return layers.swiglu(x, layer["w_gate_up"], layer["w_down"])
