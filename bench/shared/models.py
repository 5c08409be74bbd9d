"""The models that are benchmarked with random weights: real sizes, nothing downloaded."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig, RopeConfig

_LLAMA3 = RopeConfig(kind="llama3", theta=500_000.0, factor=8.0, original_max_position_embeddings=8192)

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_layers=32,
    num_heads=32, num_kv_heads=8, head_dim=128, max_position_embeddings=131_072, rms_norm_eps=1e-5, rope=_LLAMA3,
)  # fmt: skip
"""Llama 3.1 8B."""

LLAMA_1B = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_layers=16,
    num_heads=32, num_kv_heads=8, head_dim=64, max_position_embeddings=131_072, rms_norm_eps=1e-5,
    rope=replace(_LLAMA3, factor=32.0), tie_word_embeddings=True,
)  # fmt: skip
"""Llama 3.2 1B."""

QWEN3_06B = ModelConfig(
    architecture="Qwen3ForCausalLM", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_layers=28,
    num_heads=16, num_kv_heads=8, head_dim=128, max_position_embeddings=40_960, qk_norm=True,
    rope=RopeConfig(theta=1_000_000.0), tie_word_embeddings=True,
)  # fmt: skip
"""Qwen3 0.6B."""

MODELS = {"8b": LLAMA_8B, "1b": LLAMA_1B, "0.6b": QWEN3_06B}


def tiny(config: ModelConfig) -> ModelConfig:
    """The same architecture, heads and head dimension in two narrow layers: for a machine without a GPU."""
    heads = 2 * config.group_size
    return replace(
        config, vocab_size=512, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=heads, num_kv_heads=2,
        sliding_window=(), max_position_embeddings=4096, rope=RopeConfig(),
    )  # fmt: skip
