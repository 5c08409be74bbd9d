"""KV blocks of 8 bits: nearly the numbers of the whole cache, and the same tokens however the schedule goes."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from tests.equivalence.test_schedules import tokens

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
KV_DTYPES = ["float8_e4m3fn", "int8"]
FEW_PROGRAMS = {"prefill_buckets": (64,), "num_blocks": 48}
"""Room for all prompts at once, and not for as many long ones."""

pytestmark = pytest.mark.slow  # each type has its own programs; tests of write_kv are the quick ones


@pytest.fixture(scope="module", params=KV_DTYPES)
def llm(request: pytest.FixtureRequest, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(**FEW_PROGRAMS, kv_cache_dtype=request.param)


def test_scores_are_near_those_of_the_whole_cache(llm: LLM, base: LLM, prompts: list[list[int]]) -> None:
    """A rounding error of 2^-4 at most in keys and values, and there is one; a wrong scale would give another model."""
    whole, small = (
        np.array([entry.logprob for row in engine.score(prompts) for entry in row if entry is not None])
        for engine in (base, llm)
    )
    difference = np.abs(whole - small)
    assert 0 < difference.mean() < 2.0**-4 * whole.std()


def test_blocks_are_of_8_bits_and_scales(llm: LLM, base: LLM) -> None:
    block, head_dim = llm.config.cache.block_size, llm.model_config.head_dim
    small, whole = (engine.runner.kv_bytes / engine.engine.scheduler.blocks.pool.num_blocks for engine in (llm, base))
    assert small * (4 * block * head_dim) == whole * (block * head_dim + 4)


def test_a_prefix_that_was_decoded_and_one_that_was_prefilled_give_the_same_tokens(
    llm: LLM, prompts: list[list[int]]
) -> None:
    """Decoded token by token its blocks have grown their scales, prefilled they have not: see `write_kv`."""
    if llm.config.cache.kv_cache_dtype == "int8":
        pytest.skip("int8 rounds again when a scale grows: see kernels_pallas.write_kv")
    prompt = prompts[0]
    [answer] = tokens(llm, [prompt], [GREEDY])
    hits = llm.engine.scheduler.blocks.prefix_hits
    [shared] = tokens(llm, [prompt + answer[:20]], [GREEDY])
    assert llm.engine.scheduler.blocks.prefix_hits > hits
    llm.engine.scheduler.blocks.drop_prefixes()
    [fresh] = tokens(llm, [prompt + answer[:20]], [GREEDY])
    assert shared == fresh and shared[:4] == answer[20:]


def test_together_is_alone(llm: LLM, prompts: list[list[int]]) -> None:
    alone = [tokens(llm, [prompt], [GREEDY])[0] for prompt in prompts]
    assert tokens(llm, prompts, [GREEDY] * len(prompts)) == alone


def test_parked_blocks_keep_their_scales(llm: LLM, make_llm: Callable[..., LLM], prompts: list[list[int]]) -> None:
    longest = [prompts[-1][i:] + prompts[-1][:i] for i in range(8)]
    alone = [tokens(llm, [prompt], [GREEDY])[0] for prompt in longest]
    parking = make_llm(
        **FEW_PROGRAMS, kv_cache_dtype=llm.config.cache.kv_cache_dtype, enable_prefix_caching=False,
        offload_host_bytes=1 << 20,
    )  # fmt: skip
    assert tokens(parking, longest, [GREEDY] * len(longest)) == alone
    assert parking.engine.scheduler.blocks.tiers.counts.loaded_from_host > 0
