"""What a step multiplies with weights, counted over the leaves that a model declares."""

import jax

from jaxserve.costs.roofline import ModelSize
from jaxserve.models import leaves
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for


def size_of(config: ModelConfig) -> ModelSize:
    """The model as the roofline sees it."""
    tree = model_for(config).leaves(config)
    return ModelSize(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.fan_in),
        matmul_parameters=leaves.matmul_flops(tree) // 2,
        attention_width=config.num_layers * config.num_heads * config.head_dim,
        kv_width=2 * config.num_layers * config.num_kv_heads * config.head_dim,
    )


def matmul_flops(config: ModelConfig, tokens: float, ends: float, *, fused_queries: bool = False) -> float:
    """FLOPs of these tokens, of which `ends` sample: those pass every layer and the head, the others all but the last
    layer, of which they owe the key and the value only.

    `fused_queries`: their queries in the last layer count too. No floor needs them; `models.layers.qkv` computes them
    with the keys and the values, by one matmul.
    """
    tree = model_for(config).leaves(config)
    before_last = leaves.matmul_flops(tree["layers"][:-1])
    owed = config.num_kv_heads * 2 + (config.num_heads if fused_queries else 0)
    owed_by_all = 2 * config.hidden_size * config.head_dim * owed
    last = leaves.matmul_flops(tree) - before_last - owed_by_all
    return (before_last + owed_by_all) * tokens + last * ends
