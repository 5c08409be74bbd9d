"""The shared suite for every architecture of the table."""

from typing import Any, ClassVar

import pytest

from jaxserve.models import MODELS
from tests.models.suite import ModelSuite

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip


class TestLlama(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = {"architectures": ["LlamaForCausalLM"], **SIZES}


class TestLlamaWithBiases(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = {**TestLlama.hf_config, "attention_bias": True, "tie_word_embeddings": True}


class TestMistral(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = {"architectures": ["MistralForCausalLM"], "sliding_window": 5, **SIZES}


class TestQwen2(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = {
        "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        **SIZES,
    }  # fmt: skip


class TestQwen3(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True, **SIZES}


def test_every_model_of_the_table_has_a_suite() -> None:
    suites = [value for value in globals().values() if isinstance(value, type) and issubclass(value, ModelSuite)]
    tested = {name for suite in suites if suite is not ModelSuite for name in suite.hf_config["architectures"]}
    assert tested == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_registered_under_its_own_name(name: str) -> None:
    assert MODELS[name].hf_architecture == name
