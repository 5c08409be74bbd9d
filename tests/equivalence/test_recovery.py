"""A step that fails on the device: its requests end with an error, and the next ones find a clean cache."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.runtime import runner as runner_module

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


def test_the_old_cache_is_freed_before_there_is_a_new_one(base: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens() -> list[int]:
        return base.generate([list(range(40))], GREEDY, use_tqdm=False)[0].outputs[0].token_ids

    def fail(plan: object) -> None:
        raise RuntimeError("the device is gone")

    def allocate(*given: object) -> object:
        freed.append(all(leaf.is_deleted() for leaf in old))
        return original(*given)

    undisturbed, original, freed = tokens(), runner_module.allocate_cache, list[bool]()
    old = jax.tree.leaves(base.runner._state) + jax.tree.leaves(base.runner._slots)
    assert len(old) > 4 and not any(leaf.is_deleted() for leaf in old)
    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "allocate_cache", allocate)
        patch.setattr(base.runner, "submit", fail)
        base.engine.add(base.make_request([1, 2, 3], GREEDY))
        (output,) = base.engine.step()
    assert output.finish_reason == "error" and freed == [True]
    assert tokens() == undisturbed


def test_a_step_that_compiles_fails_alone(make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm()

    def run(prompt: list[int]) -> tuple[list[int], str | None]:
        (completion,) = llm.generate([prompt], GREEDY, use_tqdm=False)[0].outputs
        return completion.token_ids, completion.error

    undisturbed, batch = run([4] * 20), llm.runner._batch
    assert undisturbed[1] is None and len(undisturbed[0]) == 6
    for count, part in enumerate(("model_input", "sample_input"), start=1):
        pack = getattr(batch, part)

        def compiling(*given: Any, pack: Callable[..., Any] = pack) -> Any:
            jax.jit(lambda x: x + 1)(np.float32(1))
            return pack(*given)

        with monkeypatch.context() as patch:
            patch.setattr(batch, part, compiling)
            tokens, error = run([5] * 20)
        assert tokens == [] and error is not None and "UnexpectedCompilation: 1 program" in error
        assert llm.runner.compilations_after_warmup == count
        assert run([4] * 20) == undisturbed


@pytest.mark.parametrize("backend", ["triton", "mosaic_gpu"])
def test_a_backend_that_cannot_is_an_error_of_the_configuration(make_llm: Callable[..., LLM], backend: str) -> None:
    with pytest.raises(ConfigError, match=f"attention_backend = '{backend}' cannot work"):
        make_llm(attention_backend=backend)


def test_a_share_of_a_gpu_says_nothing_to_the_cpu(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is compiled, where this test stops."""

    class Enough(Exception):
        pass

    def stop(*given: object, **options: object) -> object:
        raise Enough

    monkeypatch.setattr("jaxserve.assembly.ModelRunner", stop)
    words = "gpu_memory_utilization = 0.5 has no effect on the CPU.*kv_cache_bytes"
    with pytest.raises(Enough), pytest.warns(UserWarning, match=words):
        make_llm(num_blocks=None, gpu_memory_utilization=0.5)
