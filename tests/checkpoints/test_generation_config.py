"""`generation_config.json`: what of it becomes a default of sampling, and what is refused."""

import json
from pathlib import Path

import pytest

from jaxserve.checkpoints.generation_config import GenerationConfig, read_generation_config
from jaxserve.core.errors import CheckpointError, ConfigError

QWEN = {
    "do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": None,
    "max_new_tokens": 2048, "eos_token_id": [5, 7], "pad_token_id": 7, "transformers_version": "4.37.0",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "generation_config.json").write_text(json.dumps(QWEN))
    return tmp_path


def test_what_vllm_reads_is_read(folder: Path) -> None:
    found = read_generation_config("auto", folder)
    assert found.sampling == {
        "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_tokens": 2048,
    }  # fmt: skip
    assert found.eos_token_ids == (5, 7)


def test_a_folder_stands_for_the_models_own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "generation_config.json").write_text('{"temperature": 0}')
    assert read_generation_config(str(other), folder).sampling == {"temperature": 0}
    with pytest.raises(ConfigError, match=r"nowhere.*auto, none, or a folder"):
        read_generation_config("/nowhere", folder)


@pytest.mark.parametrize("setting", ["none", "vllm"])
def test_off_is_off(folder: Path, setting: str) -> None:
    assert read_generation_config(setting, folder) == GenerationConfig()


def test_a_model_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert read_generation_config("auto", tmp_path) == GenerationConfig() == read_generation_config("auto", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"top_p": 1.5}', "top_p"),
        ('{"temperature": "hot"}', "temperature"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
        ('{"eos_token_id": "x"}', "eos_token_id is 'x'"),
    ],
)
def test_a_value_that_cannot_be_sampled_with_is_refused_with_the_file(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words) as refused:
        read_generation_config("auto", tmp_path)
    assert "generation_config.json" in str(refused.value)
