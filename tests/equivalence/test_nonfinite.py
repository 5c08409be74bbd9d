"""A request that overflows, weights of NaN, a processor that gives NaN: all else is as on a fresh engine."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.errors import ConfigError, StepFailed
from jaxserve.core.sampling import SamplingParams
from jaxserve.engine.collect import RequestOutput
from jaxserve.llm import LLM
from jaxserve.models.config import ModelConfig
from jaxserve.runtime.sampling.sampler import LogitsState
from tests.equivalence.conftest import SMALL_POOL

BAD = 200
"""The token whose embedding is infinite: whatever has it in its prompt overflows."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
SHARED = [3 + i for i in range(32)]
"""The beginning of several prompts: two blocks."""
POISON = [*range(70), BAD, *range(79)]


@pytest.fixture(scope="module")
def weights(tiny: tuple[ModelConfig, Any]) -> Any:
    params = tiny[1]
    return {**params, "embed": params["embed"].at[BAD].set(jnp.inf)}


@pytest.fixture(scope="module")
def engine_of(make_llm: Callable[..., LLM], weights: Any) -> Callable[..., LLM]:
    def make(**settings: Any) -> LLM:
        llm = make_llm(**settings)
        llm.update_params(weights)
        return llm

    return make


@pytest.fixture(scope="module")
def unrelated() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, BAD, length).tolist() for length in rng.integers(1, 150, 40)]


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    """All came to their end; unless one samples the token that overflows by itself."""
    for output in outputs:
        (completion,) = output.outputs
        assert completion.finish_reason == ("error" if completion.token_ids[-1:] == [BAD] else "length")
    return [output.outputs[0].token_ids for output in outputs]


def assert_not_finite(output: RequestOutput) -> None:
    (completion,) = output.outputs
    assert completion.finish_reason == "error" and completion.token_ids == []
    assert completion.error is not None and completion.error.startswith("NonFiniteLogits: the logits of this request")


SCHEDULES = [
    pytest.param({}, id="overlapped"),
    pytest.param({"overlap": False}, id="plain"),
    pytest.param({"chunk_size": 24}, id="chunked"),
    pytest.param({"enable_prefix_caching": False}, id="no prefixes", marks=pytest.mark.slow),
    pytest.param(SMALL_POOL | {"offload_host_bytes": 1 << 20}, id="preempted, host tier"),
    pytest.param({"kv_cache_dtype": "float8_e4m3fn"}, id="float8", marks=pytest.mark.slow),
    pytest.param({"kv_cache_dtype": "int8"}, id="int8", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings", SCHEDULES)
def test_unrelated_prompts_never_notice(
    engine_of: Callable[..., LLM], unrelated: list[list[int]], settings: dict[str, Any]
) -> None:
    """After it and beside it; twice after it, because whoever meets a NaN leaves more of them behind."""
    alone = tokens(run(engine_of(**settings), unrelated))
    llm = engine_of(**settings)
    (poisoned,) = run(llm, [POISON])
    assert_not_finite(poisoned)
    for _ in range(2):
        assert tokens(run(llm, unrelated)) == alone
    together = run(llm, [*unrelated[:20], POISON, *unrelated[20:], POISON])
    assert_not_finite(together.pop(20))
    assert_not_finite(together.pop())
    assert tokens(together) == alone
    assert llm.runner.compilations_after_warmup == 0
    pool = llm.engine.scheduler.blocks.pool
    assert pool.num_free == pool.capacity
    if "num_blocks" in settings:
        assert llm.engine.scheduler.blocks.tiers.counts.loaded_from_host > 0


@pytest.mark.parametrize(
    "kv_cache_dtype", ["auto", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float8_e4m3fn", "int8"))]
)
def test_a_beginning_that_others_share_stays_sound(engine_of: Callable[..., LLM], kv_cache_dtype: str) -> None:
    """A step computes it together with the token that overflows, and that request never has logits to look at."""
    llm, prompt = engine_of(kv_cache_dtype=kv_cache_dtype), [*SHARED, 150, 151]
    alone = tokens(run(engine_of(kv_cache_dtype=kv_cache_dtype), [prompt]))
    run(llm, [[*SHARED, BAD, *range(20)]], SamplingParams(max_tokens=0))
    (found,) = run(llm, [prompt])
    assert found.metrics is not None and found.metrics.cached_tokens == 32
    assert tokens([found]) == alone


def test_what_it_computed_is_not_found_by_others(engine_of: Callable[..., LLM]) -> None:
    llm = engine_of()
    prompt = [*SHARED, BAD, *range(20)]
    for _ in range(2):
        (output,) = run(llm, [prompt])
        assert_not_finite(output)
        assert output.metrics is not None and output.metrics.cached_tokens == 0


def test_those_that_share_it_while_they_run_end_as_it_does(engine_of: Callable[..., LLM]) -> None:
    prompt = [*SHARED, BAD, *range(20)]
    llm = engine_of()
    outputs = run(llm, [[*prompt, i] for i in range(6)] + [[*SHARED, i] for i in range(6)])
    for output in outputs[:6]:
        assert_not_finite(output)
    alone = tokens(run(engine_of(), [[*SHARED, i] for i in range(6)]))
    assert tokens(outputs[6:]) == alone


def test_log_probabilities_that_are_none_are_never_seen(engine_of: Callable[..., LLM]) -> None:
    llm = engine_of()
    for params in (
        SamplingParams(temperature=0.0, max_tokens=4, logprobs=5),
        SamplingParams(temperature=0.8, max_tokens=4, prompt_logprobs=2),
        SamplingParams(max_tokens=0, prompt_logprobs=0),
    ):
        (output,) = run(llm, [POISON], params)
        assert_not_finite(output)
        json.dumps(asdict(output), allow_nan=False)
    with pytest.raises(StepFailed, match="the logits of this request are not finite"):
        llm.score([[1, 2, 3], POISON])


def test_weights_of_nan_leave_nothing_behind(
    make_llm: Callable[..., LLM], tiny: tuple[ModelConfig, Any], unrelated: list[list[int]]
) -> None:
    """A training step that diverged, rolled back."""
    llm, good = make_llm(), tiny[1]
    first = tokens(run(llm, unrelated))
    llm.update_params(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), good))
    for output in run(llm, unrelated):
        assert_not_finite(output)
    llm.update_params(good)
    assert tokens(run(llm, unrelated)) == first
    assert tokens(run(llm, unrelated)) == first


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_processor_that_leaves_no_token_is_its_row_s_error(make_llm: Callable[..., LLM], value: float) -> None:
    def spoil(logits: jax.Array, state: LogitsState) -> jax.Array:
        return jnp.where(state.tokens[:, :1] == 7, jnp.float32(value), logits)

    llm = make_llm()
    plain = tokens(run(llm, [[9, 3], [8, 1]]))
    llm.logits_processor = spoil
    spoilt, *others = run(llm, [[7, 1, 2], [9, 3], [8, 1]])
    assert_not_finite(spoilt)
    assert tokens(others) == plain


def test_a_processor_of_another_shape_is_refused(make_llm: Callable[..., LLM]) -> None:
    def first_ten(logits: jax.Array, state: LogitsState) -> jax.Array:
        return logits[:, :10]

    def nothing(logits: jax.Array, state: LogitsState) -> Any:
        return None

    llm = make_llm()
    words = (
        r"logits_processor = first_ten cannot work: for logits \[R, V\] = \[\d+, 211\] it returned .* \[\d+, 10\]: give"
    )
    with pytest.raises(ConfigError, match=words):
        llm.logits_processor = first_ten
    with pytest.raises(ConfigError, match=r"logits_processor = nothing cannot work: .* it returned a NoneType: give"):
        llm.logits_processor = nothing
    assert llm.logits_processor is None and len(tokens(run(llm, [[1, 2]]))[0]) == 12
    with pytest.raises(ConfigError, match=words):
        make_llm(logits_processor=first_ten)
