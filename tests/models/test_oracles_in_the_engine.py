"""The oracles again, through the whole engine: chunked prefill, paged attention, batches, windows over block edges."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxserve.assembly import EMBEDDED, find_folder, find_tokenizer
from jaxserve.checkpoints import load
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import CheckpointError, ConfigError, InvalidRequest
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.text.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
ORACLES = sorted(path.parent.name for path in FIXTURES.glob("*/oracle.json"))


SIZES = {
    "max_num_seqs": 4, "max_num_batched_tokens": 32, "num_blocks": 32, "block_size": 8, "decode_buckets": (4,),
    "mixed_decode_buckets": (4,), "prefill_buckets": (32,), "prefill_rows": 4, "progress": False,
}  # fmt: skip


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path):
    """Before its weights are read: there are none."""
    shutil.copy(FIXTURES / "llama3.2" / "config.json", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no tokenizer.json; .* set tokenizer, .* skip_tokenizer_init, for token"
    ):
        LLM(tmp_path, **SIZES)


def test_another_tokenizer_than_the_models(tmp_path):
    """A setting, and an argument over it; what it lacks is told before weights are read."""
    shutil.copy(FIXTURES / "llama3.2" / "config.json", tmp_path)
    section = EngineConfig.from_settings(model=str(tmp_path), tokenizer="embedded").model
    folder = find_folder(section, None, None)
    own, embedded = Tokenizer.from_directory(EMBEDDED), find_tokenizer(section, None, folder)
    assert folder == tmp_path and embedded.encode("ROMEO:") == own.encode("ROMEO:")
    assert find_tokenizer(section, own, folder) is own
    for wrong, says in (
        (tmp_path, "no tokenizer.json"),
        ("./missing", "no such directory"),
        (EMBEDDED / "tokenizer.json", "expected the directory that holds tokenizer.json"),
    ):
        with pytest.raises(CheckpointError, match=says):
            LLM(tmp_path, tokenizer=wrong, **SIZES)
    with pytest.raises(ConfigError, match=r"tokenizer is a dict: give a directory, a hub id, or jaxserve.text.tok"):
        LLM(tmp_path, tokenizer={}, **SIZES)
    with pytest.raises(ConfigError, match=r"skip_tokenizer_init = True cannot work: give false beside tokenizer = "):
        LLM(tmp_path, skip_tokenizer_init=True, tokenizer="embedded", **SIZES)
    with pytest.raises(ConfigError, match=r"skip_tokenizer_init = True cannot work: give false beside a tokenizer"):
        LLM(tmp_path, skip_tokenizer_init=True, tokenizer=own, **SIZES)


@pytest.mark.slow
def test_a_folder_without_a_tokenizer_serves_token_ids(compilation_cache):
    folder = FIXTURES / "llama3.2"
    llm = LLM(folder, skip_tokenizer_init=True, compilation_cache_dir=compilation_cache, **SIZES)
    case = json.loads((folder / "oracle.json").read_text())["cases"][0]
    prompt = case["tokens"][: case["prompt_length"]]
    (output,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    assert list(output.outputs[0].token_ids) == case["tokens"][case["prompt_length"] :] and output.outputs[0].text == ""
    assert llm.make_request(prompt, SamplingParams()).eos_token_ids == llm.model_config.eos_token_ids
    for wants_text in (lambda: llm.generate("x"), lambda: llm.chat([{"role": "user", "content": "x"}])):
        with pytest.raises(InvalidRequest, match="needs a tokenizer and there is none: give token ids"):
            wants_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_the_engine_generates_what_transformers_does(name, compilation_cache):
    checkpoint = load(FIXTURES / name, dtype="float32")
    llm = LLM(
        params=checkpoint.params, model_config=checkpoint.config, compilation_cache_dir=compilation_cache, **SIZES
    )
    cases = json.loads((FIXTURES / name / "oracle.json").read_text())["cases"]
    prompts = [case["tokens"][: case["prompt_length"]] for case in cases]
    assert max(map(len, prompts)) > 32  # more than a step takes
    greedy = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
    for case, output in zip(cases, llm.generate(prompts, greedy), strict=True):
        (sequence,) = output.outputs
        assert list(sequence.token_ids) == case["tokens"][case["prompt_length"] :]
        found = [entry.logprob for entry in sequence.logprobs]
        np.testing.assert_allclose(found, case["logprobs"][case["prompt_length"] - 1 :], atol=2e-4, rtol=0)
