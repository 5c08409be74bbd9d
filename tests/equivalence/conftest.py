"""Small engines on the real runtime. Equal shapes are compiled once a session, through the persistent cache."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from jaxserve.checkpoints import config_from_hf
from jaxserve.llm import LLM
from jaxserve.models.config import ModelConfig
from jaxserve.models.params import random_params

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

BASE: dict[str, Any] = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "num_blocks": 64,
    "block_size": 16,
    "decode_buckets": (8,),
    "mixed_decode_buckets": (8,),
    "prefill_buckets": (16, 64),
    "prefill_rows": 8,  # as many as decode rows: two sizes of sampler do for all buckets
    "on_compile_after_warmup": "error",
}

SMALL_POOL: dict[str, Any] = {"num_blocks": 11, "watermark": 0.0, "prefill_buckets": (64,)}
"""Too small for what runs at once. The pool's size is in every model's program: all who need one share this."""


@pytest.fixture(scope="session")
def tiny() -> tuple[ModelConfig, Any]:
    config = config_from_hf(TINY)
    return config, random_params(config, seed=3, dtype="float32")


@pytest.fixture(scope="session")
def make_llm(tiny: tuple[ModelConfig, Any], compilation_cache: str) -> Callable[..., LLM]:
    def make(**settings: Any) -> LLM:
        config, params = tiny
        options = BASE | {"compilation_cache_dir": compilation_cache, "progress": False} | settings
        return LLM(params=params, model_config=config, **options)

    return make


@pytest.fixture(scope="session")
def base(make_llm: Callable[..., LLM]) -> LLM:
    """The engine that most tests share; every test must leave it idle."""
    return make_llm()


@pytest.fixture(autouse=True)
def nothing_compiled_and_nothing_left(base: LLM) -> Iterator[None]:
    yield
    pool = base.engine.scheduler.blocks.pool
    assert base.runner.compilations_after_warmup == 0
    assert not base.engine.has_work and pool.num_free == pool.capacity


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 211, length).tolist() for length in (1, 5, 15, 16, 17, 33, 64, 70, 90, 120)]
