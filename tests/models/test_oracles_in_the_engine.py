"""The oracles again, through the whole engine: chunked prefill, paged attention, batches, windows over block edges."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models import load

FIXTURES = Path(__file__).parents[1] / "fixtures"
ORACLES = sorted(path.parent.name for path in FIXTURES.glob("*/oracle.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_the_engine_generates_what_transformers_does(name, compilation_cache):
    checkpoint = load(FIXTURES / name, dtype="float32")
    llm = LLM(
        params=checkpoint.params, model_config=checkpoint.config, compilation_cache_dir=compilation_cache,
        progress=False, max_num_seqs=4, max_num_batched_tokens=32, num_blocks=32, block_size=8, decode_buckets=(4,),
        mixed_decode_buckets=(4,), prefill_buckets=(32,), prefill_rows=3,
    )  # fmt: skip
    cases = json.loads((FIXTURES / name / "oracle.json").read_text())["cases"]
    prompts = [case["tokens"][: case["prompt_length"]] for case in cases]
    assert max(map(len, prompts)) > 32  # more than a step takes
    greedy = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
    for case, output in zip(cases, llm.generate(prompts, greedy), strict=True):
        (sequence,) = output.outputs
        assert list(sequence.token_ids) == case["tokens"][case["prompt_length"] :]
        found = [entry.logprob for entry in sequence.logprobs]
        np.testing.assert_allclose(found, case["logprobs"][case["prompt_length"] - 1 :], atol=2e-4, rtol=0)
