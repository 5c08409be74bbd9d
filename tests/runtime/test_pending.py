"""What a step brings back: each row's token and scores, from the places where the device wrote them."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxserve.core.plan import (
    NOTHING,
    ONE_TOKEN,
    Bucket,
    Row,
    SideOutputs,
    StepPlan,
    StepResult,
    TokenLogprobs,
    Wants,
)
from jaxserve.core.sampling import MAX_LOGPROBS
from jaxserve.runtime.pending import PendingStep
from jaxserve.runtime.sampling.logprobs import LogProbs
from jaxserve.runtime.sampling.sampler import Sampled
from jaxserve.runtime.side_outputs import scoring_targets

BUCKET = Bucket(decode_rows=2, prefill_tokens=16, prefill_rows=4, sample_rows=8)
DECODE = Row(slot=1, start=17, length=1, wants=Wants(True, logprobs=2), blocks=(5,))
PREFILLS = (
    Row(0, 0, 3, Wants(False, None, 0, [21, 22, 23]), tokens=[20, 21, 22], blocks=(1,)),
    Row(2, 0, 2, NOTHING, tokens=[1, 2], blocks=(2,)),
    Row(3, 8, 4, Wants(True, 1, 1, [41, 42, 43]), tokens=[40, 41, 42, 43], blocks=(3, 4)),
)
"""The last one ends its prompt, whose last token predicts the output and no prompt token."""


def columns(count: int) -> LogProbs:
    """At place i log-probability -i, rank i + 1, and the likeliest ones 1000 i, 1000 i + 1, .."""
    at, top = np.arange(count, dtype=np.int32), np.arange(MAX_LOGPROBS, dtype=np.int32)
    ids = 1000 * at[:, None] + top[None, :]
    return jnp.asarray(-at, jnp.float32), jnp.asarray(at + 1), jnp.asarray(ids), jnp.asarray(-ids, jnp.float32)


def entry(token: int, place: int, count: int) -> TokenLogprobs:
    top = tuple((1000 * place + i, -float(1000 * place + i)) for i in range(count))
    return TokenLogprobs(token, -float(place), place + 1, top)


def brought(plan: StepPlan, scores: LogProbs | None = None, *, full: bool = True) -> StepResult:
    """The device's token at place i is 100 + i."""
    offload: Any = SimpleNamespace(settled=lambda: ())
    tokens = jnp.arange(100, 100 + BUCKET.sample_rows, dtype=jnp.int32)
    sampled = Sampled(tokens, *(columns(BUCKET.sample_rows) if full else ()))
    pending = PendingStep(plan, BUCKET, lambda: (sampled, scores), offload)
    pending.sample()
    return pending.wait()


def test_tokens_and_scores_come_from_their_rows_places() -> None:
    found = brought(StepPlan(1, (DECODE,), PREFILLS, BUCKET), columns(BUCKET.prefill_tokens))
    assert found.tokens.tolist() == [100, 104] and found.counts.tolist() == [1, 0, 0, 1]
    assert found.side == {
        0: SideOutputs([entry(100, 0, 2)], ()),
        1: SideOutputs((), [entry(21, 0, 0), entry(22, 1, 0), entry(23, 2, 0)]),
        3: SideOutputs([entry(104, 4, 1)], [entry(41, 5, 1), entry(42, 6, 1), entry(43, 7, 1)]),
    }


def test_a_decode_row_alone_has_its_scores() -> None:
    found = brought(StepPlan(1, (DECODE, DECODE._replace(slot=2, wants=ONE_TOKEN)), (), BUCKET))
    assert found.tokens.tolist() == [100, 101] and found.side == {0: SideOutputs([entry(100, 0, 2)], ())}


def test_what_no_row_wants_is_not_brought() -> None:
    plan = StepPlan(1, (DECODE._replace(wants=ONE_TOKEN),), (PREFILLS[1],), BUCKET)
    assert brought(plan).side == brought(plan, full=False).side == {}
    assert scoring_targets(plan, BUCKET) is None


def test_each_prompt_is_scored_against_its_next_tokens() -> None:
    targets = scoring_targets(StepPlan(1, (DECODE,), PREFILLS, BUCKET), BUCKET)
    assert targets is not None and targets.tolist() == [21, 22, 23, 0, 0, 41, 42, 43] + [0] * 8
