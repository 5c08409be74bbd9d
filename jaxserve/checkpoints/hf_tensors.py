"""Which Hugging Face tensor fills which part of which parameter leaf.

Hugging Face stores a linear layer as [out, in]; a leaf here is [in, out...] and holds several of them. A `Source` says
how one stored tensor is cut up, turned, and where in its leaf it goes.
"""

from dataclasses import dataclass
from typing import Any

import jax

from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for

Index = tuple[slice | int, ...]
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Source:
    """`leaf[index] = stored.reshape(split).transpose(turn)`; `shape` is the stored tensor's."""

    name: str
    shape: tuple[int, ...]
    index: Index
    split: tuple[int, ...]
    turn: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeafSources:
    """One leaf, the names of its axes and all that fills it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sources: tuple[Source, ...]


def leaf_sources(config: ModelConfig) -> object:
    """The parameter pytree with a `LeafSources` in the place of each array."""
    model = model_for(config)
    shapes = model.abstract_params(config, "float32")
    axes = model.leaf_axes(config)
    return jax.tree.map_with_path(
        lambda path, leaf, axes: LeafSources(leaf.shape, axes, _sources(path, config)), shapes, axes
    )


def ignorable(name: str) -> bool:
    """Tensors that some checkpoints carry and nothing reads."""
    return name.endswith("rotary_emb.inv_freq")


def _sources(path: tuple[Any, ...], config: ModelConfig) -> tuple[Source, ...]:
    leaf = path[-1].key
    if len(path) == 1:
        return _top_level(config)[leaf]
    return _layer(config, f"model.layers.{path[1].idx}.")[leaf]


def _top_level(config: ModelConfig) -> dict[str, tuple[Source, ...]]:
    vocab, hidden = config.vocab_size, config.hidden_size
    return {
        "embed": (_whole("model.embed_tokens.weight", (vocab, hidden)),),
        "norm": (_whole("model.norm.weight", (hidden,)),),
        "lm_head": (_linear("lm_head.weight", (vocab,), hidden, ()),),
    }


def _layer(config: ModelConfig, prefix: str) -> dict[str, tuple[Source, ...]]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    kv_heads, group = config.num_kv_heads, config.group_size
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    query, key, value = slice(0, group), group, group + 1
    return {
        "attn_norm": (_whole(prefix + "input_layernorm.weight", (hidden,)),),
        "mlp_norm": (_whole(prefix + "post_attention_layernorm.weight", (hidden,)),),
        "q_norm": (_whole(attention + "q_norm.weight", (head,)),),
        "k_norm": (_whole(attention + "k_norm.weight", (head,)),),
        "wqkv": (
            _linear(attention + "q_proj.weight", (kv_heads, group, head), hidden, (_ALL, _ALL, query)),
            _linear(attention + "k_proj.weight", (kv_heads, head), hidden, (_ALL, _ALL, key)),
            _linear(attention + "v_proj.weight", (kv_heads, head), hidden, (_ALL, _ALL, value)),
        ),
        "bqkv": (
            _vector(attention + "q_proj.bias", (kv_heads, group, head), (_ALL, query)),
            _vector(attention + "k_proj.bias", (kv_heads, head), (_ALL, key)),
            _vector(attention + "v_proj.bias", (kv_heads, head), (_ALL, value)),
        ),
        "wo": (
            Source(attention + "o_proj.weight", (hidden, kv_heads * group * head), (),
                   (hidden, kv_heads, group, head), (1, 2, 3, 0)),
        ),
        "bo": (_whole(attention + "o_proj.bias", (hidden,)),),
        "w_gate_up": (
            _linear(mlp + "gate_proj.weight", (inner,), hidden, (_ALL, 0)),
            _linear(mlp + "up_proj.weight", (inner,), hidden, (_ALL, 1)),
        ),
        "w_down": (_linear(mlp + "down_proj.weight", (hidden,), inner, ()),),
    }  # fmt: skip


def _whole(name: str, shape: tuple[int, ...]) -> Source:
    return Source(name, shape, (), shape, tuple(range(len(shape))))


def _vector(name: str, out: tuple[int, ...], index: Index) -> Source:
    """A bias, its outputs cut into `out`."""
    size = 1
    for axis in out:
        size *= axis
    return Source(name, (size,), index, out, tuple(range(len(out))))


def _linear(name: str, out: tuple[int, ...], inputs: int, index: Index) -> Source:
    """A linear layer [out, in], its outputs cut into `out`, its input axis brought to the front."""
    (size,) = _vector(name, out, index).shape
    return Source(name, (size, inputs), index, (*out, inputs), (len(out), *range(len(out))))
