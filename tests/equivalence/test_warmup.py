"""Before the doors open: every program compiled and run once, and no trace of that left."""

from collections.abc import Callable
from typing import Any

import pytest

from jaxserve.core.plan import Bucket
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.runtime.runner import ModelRunner
from jaxserve.runtime.sampling.variant import Variant

ASKED = [
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=5, presence_penalty=0.5, logit_bias={7: 2.0}),
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3, prompt_logprobs=2),
]


def answers(llm: LLM) -> list[Any]:
    outputs = llm.generate([list(range(3, 53))] * len(ASKED), ASKED)
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs, o.prompt_logprobs) for o in outputs]


@pytest.mark.parametrize("warmup", ["full", "progressive"])
def test_what_is_compiled_has_run_once(
    warmup: str, make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Bucket] = []

    def rehearse(runner: ModelRunner, bucket: Bucket) -> None:
        assert bucket in runner.programs.ready
        found.append(bucket)

    monkeypatch.setattr(ModelRunner, "rehearse", rehearse)
    llm = make_llm(warmup=warmup)
    buckets = llm.runner.programs._buckets
    assert found == (buckets if warmup == "full" else buckets[:2])


def test_a_rehearsal_runs_all_programs_of_a_bucket(base: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, programs, ran = base.runner, base.runner.programs, set()

    def counted(table: Any, key: Any, program: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            ran.add((table, key))
            return program(*arguments)

        return run

    for table in (programs.models, programs.samplers, programs.scorers):
        watched = {key: counted(table, key, program) for key, program in table._programs.items()}
        monkeypatch.setattr(table, "_programs", watched)
    for bucket in programs.ready:
        runner.rehearse(bucket)
    wanted = {found for found in programs.all() if found[0] not in (programs.loaders, programs.movers)}
    assert ran == wanted


def test_a_rehearsal_leaves_nothing(base: LLM) -> None:
    """Neither in the slots' state nor in the blocks of which the later answers' prompts are made."""
    answers(base)  # their prompt is in the prefix cache from now on, and steps are cut the same
    before = answers(base)
    for bucket in base.runner.programs.ready:
        base.runner.rehearse(bucket)
    assert answers(base) == before


@pytest.mark.slow
def test_progressive_warmup_serves_before_all_is_compiled(make_llm: Callable[..., LLM], base: LLM) -> None:
    llm = make_llm(warmup="progressive", decode_buckets=(1, 4, 8), on_compile_after_warmup="count")
    assert [tokens for tokens, *_ in answers(llm)] == [tokens for tokens, *_ in answers(base)]


def test_a_bucket_with_a_model_has_all_its_programs(base: LLM) -> None:
    """In whatever moment a step finds it, while others are still being compiled."""
    programs, ready = base.runner.programs, set()
    for table, key in programs.all():
        ready.add((table, key))
        if table is programs.models:
            assert all((programs.samplers, (key.sample_rows, variant)) in ready for variant in Variant)
            assert not key.prefill_tokens or (programs.scorers, (key.prefill_tokens, key.prefill_rows)) in ready
