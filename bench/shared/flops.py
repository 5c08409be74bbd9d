"""What a step multiplies with weights, counted from a model's shape: norms and biases are a ten-thousandth of it."""

from jaxserve.costs.roofline import ModelShape
from jaxserve.models.config import ModelConfig


def shape_of(config: ModelConfig) -> ModelShape:
    """The model as the roofline sees it."""
    return ModelShape(
        num_hidden_layers=config.num_layers, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, vocab_size=config.vocab_size,
        tie_word_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def matmul_flops(config: ModelConfig, tokens: float, ends: float, *, fused_queries: bool = False) -> float:
    """FLOPs of so many tokens, of which `ends` sample: those pass every layer and the head, the others all but the last
    layer, of which they owe the key and the value only.

    `fused_queries`: their queries in the last layer count too. No floor needs them; `models.layers.qkv` computes them
    with the keys and the values, by one matmul.
    """
    shape = shape_of(config)
    owed = config.num_kv_heads * 2 + (config.num_heads if fused_queries else 0)
    owed_by_all = config.hidden_size * config.head_dim * owed
    before_last = shape.matmul_parameters - shape.layer_parameters - shape.head_parameters
    last = shape.layer_parameters - owed_by_all + shape.head_parameters
    return 2 * ((before_last + owed_by_all) * tokens + last * ends)
