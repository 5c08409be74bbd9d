"""However a request is scheduled, the real engine gives the same tokens; logits may differ in their last bits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models.dense_attention import dense_attention
from jaxserve.models.registry import model_for
from tests.equivalence.conftest import SMALL_POOL

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
MIXED = [
    SamplingParams(temperature=0.0, max_tokens=24),
    SamplingParams(temperature=0.9, seed=1, max_tokens=24),
    SamplingParams(temperature=1.1, seed=2, top_k=20, max_tokens=24),
    SamplingParams(temperature=0.8, seed=3, top_p=0.8, max_tokens=24),
    SamplingParams(temperature=1.0, seed=4, min_p=0.05, max_tokens=24),
    SamplingParams(temperature=0.7, seed=5, presence_penalty=0.8, frequency_penalty=0.5, max_tokens=24),
    SamplingParams(temperature=0.0, repetition_penalty=1.4, max_tokens=24),
    SamplingParams(temperature=0.0, logit_bias={7: 4.0, 11: -100.0}, max_tokens=24),
    SamplingParams(temperature=0.9, seed=6, max_tokens=24, logprobs=3),
    SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=(5,), min_tokens=20),
]


def tokens(llm: LLM, prompts: list[list[int]], params: Any = GREEDY) -> list[list[int]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert llm.runner.compilations_after_warmup == 0
    return [output.outputs[0].token_ids for output in outputs]


def dense_logprobs(llm: LLM) -> Callable[[list[int]], np.ndarray]:
    """Log-probabilities [len, V] after each token of a sequence, from one dense pass; padded, so compiled once."""
    model, config, params = model_for(llm.model_config), llm.model_config, llm.params
    at = jnp.arange(160, dtype=jnp.int32)

    @jax.jit
    def run(tokens: jax.Array) -> jax.Array:
        hidden = model.forward(params, config, tokens, at, dense_attention(at))
        return jax.nn.log_softmax(model.logits(params, config, hidden), axis=1)

    def logprobs(tokens: list[int]) -> np.ndarray:
        return np.asarray(run(jnp.asarray(tokens + [0] * (160 - len(tokens)), jnp.int32)))[: len(tokens)]

    return logprobs


@pytest.fixture(scope="module")
def reference(base: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Each request alone."""
    return [tokens(base, [prompt], [params])[0] for prompt, params in zip(prompts, MIXED, strict=True)]


def test_the_engine_is_the_model(base: LLM, prompts: list[list[int]]) -> None:
    """Greedy tokens and log-probabilities against one dense pass over the whole sequence."""
    dense = dense_logprobs(base)
    for prompt, output in zip(prompts, base.generate(prompts, GREEDY, use_tqdm=False), strict=True):
        found = output.outputs[0].token_ids
        logprobs = dense(prompt + found)
        assert np.argmax(logprobs, axis=1)[len(prompt) - 1 : -1].tolist() == found


def test_batched_is_alone(base: LLM, prompts: list[list[int]], reference: list[list[int]]) -> None:
    assert tokens(base, prompts, MIXED) == reference


def test_a_prefix_hit_is_a_miss(base: LLM, prompts: list[list[int]], reference: list[list[int]]) -> None:
    before = base.engine.scheduler.blocks.prefix_hits
    assert tokens(base, prompts, MIXED) == reference
    assert base.engine.scheduler.blocks.prefix_hits > before


def slow(settings: dict[str, Any], name: str) -> Any:
    return pytest.param(settings, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"overlap": False}, id="plain"),
        pytest.param({"policy": "static", "batch_size": 3}, id="static"),
        slow({"policy": "dynamic", "max_batch_size": 4}, "dynamic"),
        slow({"policy": "continuous"}, "continuous"),
        slow({"policy": "adaptive", "tpot_slo_s": 0.01, "ordering": "shortest"}, "adaptive, shortest"),
        slow({"ordering": "fair", "long_prefill_token_threshold": 16}, "fair, long prompts in pieces"),
        pytest.param({"chunk_size": 7}, id="chunked"),
        slow({"fill_buckets": False, "enable_prefix_caching": False}, "no prefixes"),
        pytest.param(SMALL_POOL, id="preempted"),
        slow(SMALL_POOL | {"overlap": False, "chunk_size": 16}, "preempted, plain, chunked"),
    ],
)
def test_other_schedules(
    make_llm: Callable[..., LLM], prompts: list[list[int]], reference: list[list[int]], settings: dict[str, Any]
) -> None:
    llm = make_llm(**settings)
    outputs = llm.generate(prompts, MIXED, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == reference
    assert llm.runner.compilations_after_warmup == 0
    if "num_blocks" in settings:
        assert any(output.metrics and output.metrics.preemptions for output in outputs), "the pool was to be too small"


def test_min_tokens_bans_the_end(base: LLM, prompts: list[list[int]], reference: list[list[int]]) -> None:
    assert 5 not in reference[9][:20]


def test_streamed_is_whole(base: LLM, prompts: list[list[int]], reference: list[list[int]]) -> None:
    streamed = [t for piece in base.stream(prompts[5], MIXED[5]) for t in piece.tokens]
    assert streamed == reference[5]


def test_leaving_a_stream_frees_its_blocks(base: LLM, prompts: list[list[int]]) -> None:
    for piece in base.stream(prompts[8], GREEDY):
        if piece.tokens:
            break


def test_n_completions_of_a_seed(base: LLM, prompts: list[list[int]]) -> None:
    params = SamplingParams(temperature=1.0, seed=40, n=3, max_tokens=10)
    several = base.generate([prompts[6]], params, use_tqdm=False)[0].outputs
    alone = [
        tokens(base, [prompts[6]], SamplingParams(temperature=1.0, seed=40 + i, max_tokens=10))[0] for i in range(3)
    ]
    assert [output.token_ids for output in several] == alone


@pytest.mark.slow
def test_deterministic_is_bitwise(make_llm: Callable[..., LLM], prompts: list[list[int]]) -> None:
    llm = make_llm(deterministic=True)
    params = [SamplingParams(temperature=0.7, seed=i, logprobs=5, max_tokens=24) for i in range(len(prompts))]

    def bits(outputs: list[Any]) -> list[Any]:
        return [(entry.token, entry.logprob, entry.top) for o in outputs for entry in o.outputs[0].logprobs]

    alone = [bits(llm.generate([p], [s], use_tqdm=False)) for p, s in zip(prompts, params, strict=True)]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert [bits([output]) for output in together] == alone
    order = list(reversed(range(len(prompts))))
    reordered = llm.generate([prompts[i] for i in order], [params[i] for i in order], use_tqdm=False)
    assert [bits([output]) for output in reordered] == [alone[i] for i in order]


def test_scores_are_the_models(base: LLM, prompts: list[list[int]]) -> None:
    dense = dense_logprobs(base)
    for prompt, scores in zip(prompts, base.score(prompts, top=2), strict=True):
        assert scores[0] is None and len(scores) == len(prompt)
        expected = dense(prompt)
        for i, entry in enumerate(scores[1:]):
            assert entry is not None and entry.token == prompt[i + 1]
            assert abs(entry.logprob - expected[i, entry.token]) < 2e-4
            assert entry.rank == 1 + int((expected[i] > expected[i, entry.token]).sum())
            assert abs(entry.top[0][1] - expected[i].max()) < 2e-4 and len(entry.top) == 2


def test_prompts_are_scored_beside_rows_that_decode(base: LLM, prompts: list[list[int]]) -> None:
    """The last layer of a prompt is computed by the scorer, from pages that the steps after it go on writing."""
    alone = base.score(prompts)
    params = [SamplingParams(temperature=0.0, max_tokens=5 + 3 * i, prompt_logprobs=0) for i in range(len(prompts))]
    for output, expected in zip(base.generate(prompts[::-1], params, use_tqdm=False), alone[::-1], strict=True):
        assert output.prompt_logprobs is not None
        for entry, other in zip(output.prompt_logprobs[1:], expected[1:], strict=True):
            assert entry is not None and other is not None and entry.token == other.token
            assert abs(entry.logprob - other.logprob) < 2e-4
