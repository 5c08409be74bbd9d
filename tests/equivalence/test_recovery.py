"""A step that fails on the device: its requests end with an error, and the next ones find a clean cache."""

import jax
import pytest

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
