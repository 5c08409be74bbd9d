"""What researchers do: new weights, a processor of logits, stepping by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from jaxserve.core.errors import ConfigError, EmptyPrompt, InvalidRequest, JaxserveError, ParamsMismatch
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models.config import ModelConfig
from jaxserve.models.params import random_params
from jaxserve.runtime.sampling.sampler import LogitsState

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def tokens(llm: LLM, prompt: list[int]) -> list[int]:
    return llm.generate([prompt], GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def test_new_weights_between_requests(base: LLM, tiny: tuple[ModelConfig, Any]) -> None:
    config, old = tiny
    prompt, new = list(range(40)), random_params(config, seed=99, dtype="float32")
    first = tokens(base, prompt)
    try:
        base.update_params(new)
        second = tokens(base, prompt)
    finally:
        base.update_params(old)
    assert tokens(base, prompt) == first != second
    fresh = LLM(params=new, model_config=config, config=base.config, progress=False)
    assert tokens(fresh, prompt) == second


def test_weights_that_do_not_fit_are_refused(base: LLM, tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    with pytest.raises(ParamsMismatch, match="norm"):
        base.update_params({**params, "norm": jnp.zeros(5)})
    with pytest.raises(ParamsMismatch):
        base.update_params(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    base.engine.add(base.make_request([1, 2], GREEDY))
    with pytest.raises(JaxserveError, match="between requests"):
        base.update_params(params)
    while base.engine.has_work:
        base.engine.step()
    with pytest.raises(ConfigError):
        LLM(params=params)
    with pytest.raises(ConfigError, match="exclude"):
        LLM("embedded", params=params, model_config=config)
    with pytest.raises(ConfigError, match="dtype"):
        LLM(params=params, model_config=config, dtype="bfloat16")
    with pytest.raises(
        ConfigError, match="port = 9000 cannot work: give none here: it is a setting of `jaxserve serve`"
    ):
        LLM(params=params, model_config=config, port=9000)
    with pytest.raises(ConfigError, match="revision"):
        LLM(params=params, model_config=config, revision="main")


def test_a_setting_without_effect_is_a_warning(base: LLM) -> None:
    """Said before anything is built; not of a whole configuration alone, whose maker has heard of it."""
    idle = "chunk_size = 64 has no effect with policy = 'continuous'"
    with pytest.warns(UserWarning, match=idle) as told, pytest.raises(JaxserveError, match="/no/such/model"):
        LLM("/no/such/model", policy="continuous", chunk_size=64)
    assert told[0].filename == __file__
    with pytest.raises(ConfigError, match="params"):
        LLM(params={}, config=base.config.replace(policy="continuous", chunk_size=64))


def test_weights_in_other_containers_and_of_numpy(base: LLM, tiny: tuple[ModelConfig, Any]) -> None:
    """Tuples and frozen dictionaries hold the same weights; what NumPy holds is copied, and may be written to after."""
    params = tiny[1]
    first = tokens(base, [4, 5, 6])
    try:
        for held in ({**params, "layers": tuple(params["layers"])}, freeze(params)):
            base.update_params(held)
            assert jax.tree.structure(base.params) == jax.tree.structure(params) and tokens(base, [4, 5, 6]) == first
        own = jax.tree.map(np.array, params)
        base.update_params(own)
        for leaf in jax.tree.leaves(own):
            leaf[...] = 0.0
        assert tokens(base, [4, 5, 6]) == first
        with pytest.raises(ParamsMismatch, match="float64"):
            base.update_params(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    finally:
        base.update_params(params)


def test_what_is_no_conversation_and_no_number_of_tokens(base: LLM) -> None:
    for wrong in ({"role": "user", "content": "x"}, "hello"):
        with pytest.raises(InvalidRequest, match="give a list of messages"):
            base.chat(wrong)  # type: ignore[arg-type]
    for top in (21, -1, None, True, "3"):
        with pytest.raises(InvalidRequest, match=f"top = {top!r} is not accepted: give a whole number from 0 to 20"):
            base.score([1, 2], top=top)  # type: ignore[arg-type]
    assert base.score([1, 2], top=np.int64(0)) == base.score([1, 2])  # type: ignore[arg-type]


def test_what_is_no_token_id_is_told_apart_from_what_is_too_large(base: LLM) -> None:
    for ids, wrong in (([1.0, 2.0], "1.0 is no whole number"), ([5, 211], "211 is outside the vocabulary")):
        with pytest.raises(InvalidRequest, match=f"token id {wrong}: ids go from 0 to 210"):
            base.generate([ids], GREEDY)  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="several prompts where one is taken"):
        list(base.stream(["a", "b"], GREEDY))  # type: ignore[arg-type]


def test_an_end_outside_the_vocabulary_bans_nothing(base: LLM, tiny: tuple[ModelConfig, Any]) -> None:
    """Some files say -1 where there is none."""
    config = replace(tiny[0], eos_token_ids=(-1, 5, 999_999))
    llm = LLM(params=tiny[1], model_config=config, config=base.config, progress=False)
    assert llm.make_request([1], GREEDY).eos_token_ids == (5,)


def test_prompts_with_another_salt_share_no_blocks(base: LLM) -> None:
    ids = list(range(50, 90))
    cached = []
    for salt in ("one", "two", "one"):
        (output,) = base.generate({"prompt_token_ids": ids, "cache_salt": salt}, GREEDY, use_tqdm=False)
        assert output.metrics is not None
        cached.append(output.metrics.cached_tokens)
    assert cached == [0, 0, 32]


def test_new_weights_after_a_stream_was_left(base: LLM, tiny: tuple[ModelConfig, Any]) -> None:
    stream = base.stream([1, 2, 3], SamplingParams(max_tokens=100))
    next(stream)
    stream.close()
    base.update_params(tiny[1])


def test_a_stream_is_read_while_others_are_generated(base: LLM) -> None:
    found = []
    for output in base.stream([9, 8, 7], GREEDY):
        found += output.tokens
        assert len(tokens(base, [1, 2])) == 12
    assert found == tokens(base, [9, 8, 7])


@pytest.mark.slow
def test_a_processor_is_traced_into_the_sampler(make_llm: Callable[..., LLM]) -> None:
    def only_even(logits: jax.Array, state: Any) -> jax.Array:
        even = jnp.arange(logits.shape[1], dtype=jnp.int32) % 2 == 0
        return jnp.where(even[None], logits, -jnp.inf)

    llm = make_llm(logits_processor=only_even)
    found = tokens(llm, [1, 2, 3])
    assert len(found) == 12 and all(token % 2 == 0 for token in found)
    assert llm.runner.compilations_after_warmup == 0


def repeat_the_prompts_first_token(logits: jax.Array, state: LogitsState) -> jax.Array:
    first = state.tokens[:, :1]
    return jnp.where(jnp.arange(logits.shape[1], dtype=jnp.int32)[None] == first, jnp.inf, logits)


def test_a_processor_sees_the_prompt(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    llm.logits_processor = repeat_the_prompts_first_token
    outputs = llm.generate([[7, 1, 2], [9, 3]], GREEDY, use_tqdm=False)
    assert [set(output.outputs[0].token_ids) for output in outputs] == [{7}, {9}]


def ban_11(logits: jax.Array, state: LogitsState) -> jax.Array:
    return logits.at[:, 11].set(-jnp.inf)


def discourage_repetition(logits: jax.Array, state: LogitsState) -> jax.Array:
    """A presence penalty of 1.5, written by a user."""
    index, rows = jnp.arange(state.tokens.shape[1], dtype=jnp.int32)[None], state.rows
    output = (index >= rows.prompt_lens[:, None]) & (index < rows.positions[:, None])
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    seen = jnp.zeros_like(logits, bool).at[row, jnp.where(output, state.tokens, logits.shape[1])].set(True, mode="drop")
    return jnp.where(seen, logits - 1.5, logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "same_as"),
    [
        (jax.jit(ban_11), {"logit_bias": {11: -100.0}}),
        (discourage_repetition, {"presence_penalty": 1.5}),
    ],
    ids=["ban", "penalty"],
)
def test_a_processor_between_requests(
    make_llm: Callable[..., LLM], prompts: list[list[int]], processor: Any, same_as: dict[str, Any]
) -> None:
    """What a parameter does, done by a processor: the same tokens, batched; and those of before once it is gone."""
    llm = make_llm()

    def run(**more: Any) -> list[list[int]]:
        params = [SamplingParams(temperature=0.9 * (i % 2), seed=i, max_tokens=24, **more) for i in range(len(prompts))]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert llm.runner.compilations_after_warmup == 0
        return [output.outputs[0].token_ids for output in outputs]

    plain, asked = run(), run(**same_as)
    assert plain != asked and llm.logits_processor is None
    llm.logits_processor = processor
    assert run() == asked and llm.logits_processor is processor
    llm.engine.add(llm.make_request([1, 2], GREEDY, request_id="live"))
    with pytest.raises(JaxserveError, match="processor of logits can change between requests"):
        llm.logits_processor = None
    llm.engine.abort("live")
    with pytest.raises(ZeroDivisionError):
        llm.logits_processor = lambda logits, state: logits / (1 // 0)
    assert run() == asked, "one that cannot be traced changes nothing"
    llm.logits_processor = None
    assert run() == plain


def test_stepping_by_hand(base: LLM) -> None:
    whole = tokens(base, [9, 8, 7])
    base.engine.add(base.make_request([9, 8, 7], GREEDY, request_id="mine"))
    found = []
    while base.engine.has_work:
        for output in base.engine.step():
            assert output.request_id == "mine"
            found += output.tokens
    assert found == whole


def test_nothing_to_do_and_nothing_to_start_from(base: LLM) -> None:
    """No prompts are no work, with their params one each; a prompt without tokens is refused, whatever holds it."""
    assert base.generate([], []) == base.generate(np.zeros((0, 3), np.int32)) == []
    for empty in ([[]], np.array([]), np.zeros((2, 0), np.int32), {"prompt_token_ids": np.array([], np.int32)}, ""):
        with pytest.raises(EmptyPrompt):
            base.generate(empty, GREEDY)
    with pytest.raises(InvalidRequest, match="0 sampling_params for 1 prompts"):
        base.generate([[1]], [])


def test_text_needs_a_tokenizer(base: LLM) -> None:
    with pytest.raises(InvalidRequest, match="tokenizer"):
        base.generate("some text", GREEDY)


@pytest.mark.slow
def test_bfloat16_runs(tiny: tuple[ModelConfig, Any], make_llm: Callable[..., LLM], compilation_cache: str) -> None:
    config, params = tiny
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    llm = LLM(
        params=half, model_config=config, num_blocks=20, max_num_seqs=2, decode_buckets=(2,), prefill_buckets=(16,),
        mixed_decode_buckets=(2,), max_num_batched_tokens=16, progress=False, compilation_cache_dir=compilation_cache,
    )  # fmt: skip
    assert len(tokens(llm, list(range(20)))) == 12
