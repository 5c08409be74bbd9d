"""A result may bring any number of tokens for a row: the scheduler takes them up to the one that ends the sequence."""

import numpy as np
import pytest

from jaxserve.core.events import PromptScored, TokenSampled
from jaxserve.core.plan import SideOutputs, StepResult, TokenLogprobs
from jaxserve.core.sequence import FinishReason
from jaxserve.engine.engine import Engine
from tests.engine.conftest import build_engine, request

STOP = 50


def decoding(**params: object) -> Engine:
    """Two sequences that have one output token each, and a decode row each in the step in flight."""
    engine = build_engine(overlap=False)
    for name in "ab":
        engine.add(request(name, [1, 2, 3], max_tokens=6, stop_token_ids=[STOP], **params))
    engine.step()
    plan = engine.scheduler.plan(0.0)
    assert plan is not None and len(plan.decodes) == 2 and not plan.prefills
    return engine


def commit(engine: Engine, *tokens: list[int], **options: object) -> dict[str, list[TokenSampled]]:
    flat, counts = (
        np.array([token for row in tokens for token in row], np.int32),
        np.array([len(row) for row in tokens], np.int32),
    )
    found: dict[str, list[TokenSampled]] = {}
    for event in engine.scheduler.commit(StepResult(flat, counts, **options), 0.0).events:
        assert isinstance(event, TokenSampled)
        found.setdefault(event.sequence.id, []).append(event)
    return found


@pytest.mark.parametrize(
    ("brought", "taken", "finish"),
    [
        ([7, 8, 9], [7, 8, 9], None),
        ([7, STOP, 9], [7, STOP], FinishReason.STOP),
        ([7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 11], FinishReason.LENGTH),
        ([], [], None),
    ],
)
def test_a_rows_tokens_are_its_own_up_to_the_end(
    brought: list[int], taken: list[int], finish: FinishReason | None
) -> None:
    engine = decoding()
    first, second = engine.scheduler.running
    before = len(first.tokens)
    events = commit(engine, brought, [20])
    assert first.tokens[before:] == taken and second.tokens[-1] == 20
    assert [event.token for event in events.get("a", [])] == taken
    assert [event.finish for event in events.get("a", [])[:-1]] == [None] * (len(taken) - 1 if taken else 0)
    assert first.finish_reason is finish and first.num_pending == second.num_pending == 0
    assert (len(events["b"]), second.finish_reason) == (1, None)


def test_each_token_has_its_own_log_probabilities() -> None:
    engine = decoding(logprobs=0)
    scores = [TokenLogprobs(token, -0.5 * token, 1) for token in (7, 8)]
    events = commit(engine, [7, 8], [9], side={0: SideOutputs(logprobs=scores)})
    assert [event.logprobs for event in events["a"]] == scores and events["b"][0].logprobs is None


def test_scores_of_a_chunk_begin_with_the_token_after_its_first() -> None:
    engine = build_engine(overlap=False, chunk_size=8)
    (sequence,) = engine.add(request("a", list(range(20)), prompt_logprobs=0))
    for chunk in range(2):
        plan = engine.scheduler.plan(0.0)
        assert plan is not None and plan.prefills[0].start == 8 * chunk
        scores = tuple(TokenLogprobs(token, -0.5, 1) for token in plan.prefills[0].wants.prompt_targets)
        result = StepResult(np.zeros(0, np.int32), np.zeros(1, np.int32), {0: SideOutputs(prompt_logprobs=scores)})
        assert engine.scheduler.commit(result, 0.0).events == [PromptScored(sequence, 8 * chunk + 1, scores)]
