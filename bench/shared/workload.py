"""The requests of the throughput figures, for us and for the peers: nothing here needs JAX."""

import random

LLAMA_32M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
REQUESTS = 64


def prompts(count: int, seed: int, vocab_size: int) -> list[list[int]]:
    """Prompts of 32-256 random tokens; no two share a beginning, so the prefix cache cannot help."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(32, 256))] for _ in range(count)]
