"""The engine with the Mosaic GPU kernels, in the interpreter, gives the tokens that it gives with the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxserve.checkpoints import config_from_hf
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models.params import random_params
from tests.equivalence.conftest import TINY
from tests.kernels_pallas.interpreter import compiled_once, races_found

__all__ = ["compiled_once"]

SMALL: dict[str, Any] = {
    "dtype": "float16", "max_num_seqs": 2, "max_num_batched_tokens": 32, "num_blocks": 16, "block_size": 16,
    "decode_buckets": (2,), "mixed_decode_buckets": (2,), "prefill_buckets": (32,), "prefill_rows": 2,
    "overlap": False, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def make_small() -> Callable[..., LLM]:
    """Two layers, two query heads on one KV head of 64."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    config = config_from_hf(TINY | heads)
    params = random_params(config, seed=5, dtype="float16")
    return lambda **settings: LLM(params=params, model_config=config, **SMALL | settings)


@pytest.mark.slow
def test_tokens_of_the_reference(make_small: Callable[..., LLM]) -> None:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 211, length).tolist() for length in (17, 40)]
    greedy = SamplingParams(temperature=0.0, max_tokens=6)

    def tokens(llm: LLM) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in llm.generate(prompts, greedy, use_tqdm=False)]

    interpreted = tokens(make_small(attention_backend="mosaic_gpu", attention_interpret=True))
    assert not races_found()
    assert interpreted == tokens(make_small(attention_backend="reference"))
