"""What every policy and every ordering must keep, whatever arrives: run on the fake device, which checks each token.

Every request ends, with its own tokens; the step's budget and buckets are respected; the pool is whole at the end, and
so are the tiers, however slow they are and whatever their disk loses.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.sched.orderings import ORDERINGS
from jaxserve.sched.policies import POLICIES
from tests.engine.conftest import assert_whole, build_engine, drive, request
from tests.engine.fake_executor import next_token

TOKENS = 32
LIMITS = {"max_num_seqs": 4, "max_num_batched_tokens": TOKENS, "max_model_len": 60}
BUCKETS = {"prefill_buckets": (4, 12, TOKENS), "prefill_rows": 3}
TIERS = [(0, 0, 0), (6, 0, 0), (40, 0, 0), (0, 12, 4), (0, 40, 40), (6, 40, 8)]
"""Blocks of host memory, of the disk, and on the way to or from it."""

arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 20),
            "family": st.integers(0, 2),
            "prompt": st.integers(1, 45),
            "outputs": st.integers(0, 14),
            "tenant": st.sampled_from(["a", "b"]),
            "priority": st.sampled_from([None, 0, 1]),
        }
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(
    arrivals=arrivals,
    aborts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 11)), max_size=4),
    blocks=st.integers(8, 24),
    overlap=st.booleans(),
    mixes=st.booleans(),
    tiers=st.sampled_from(TIERS),
    delay=st.integers(0, 9),
    loses=st.sampled_from([0, 2, 5]),
)
def test_every_request_ends_with_its_own_tokens(
    policy, ordering, arrivals, aborts, blocks, overlap, mixes, tiers, delay, loses
) -> None:
    engine = build_engine(
        policy=policy, ordering=ordering, blocks=blocks, overlap=overlap, deterministic=not mixes, buckets=BUCKETS,
        tiers=tiers, **LIMITS,
    )  # fmt: skip
    engine.fake.tiers.delay = delay
    engine.fake.tiers.fails = lambda move: loses > 0 and move.key % loses == 0
    outputs: dict[str, list[int]] = {}
    ended: dict[str, str] = {}
    aborted: set[str] = set()
    last = max(arrival["at"] for arrival in arrivals)
    for step in range(3000):
        for i, a in enumerate(arrivals):
            if a["at"] == step:
                prompt = [a["family"]] * a["prompt"]
                who = {"tenant": a["tenant"], "priority": a["priority"]}
                engine.add(request(str(i), prompt, max_tokens=a["outputs"], **who))
        aborted |= {str(i) for at, i in aborts if at == step and engine.abort(str(i))}
        for output in engine.step():
            assert output.request_id not in ended, "an output after the end"
            outputs.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish_reason is not None:
                ended[output.request_id] = output.finish_reason
        if step > last and not engine.has_work:
            break
    assert_whole(engine)
    assert set(ended) == {str(i) for i in range(len(arrivals))}
    for i, a in enumerate(arrivals):
        whole = [a["family"]] * a["prompt"]
        for token in outputs[str(i)]:
            assert token == next_token(whole)
            whole.append(token)
        if str(i) not in aborted:
            assert len(outputs[str(i)]) == a["outputs"]
    for plan in engine.fake.plans:
        assert plan.num_tokens or not plan.bucket.tokens, "a step computes something, or has no program"
        assert plan.num_tokens <= TOKENS + LIMITS["max_num_seqs"] * (not mixes)


@pytest.mark.parametrize("policy", POLICIES)
def test_slow_tiers_are_used_under_every_policy(policy: str) -> None:
    """The suite above would prove nothing if nobody were ever parked."""
    for tiers in ((40, 0, 0), (0, 40, 40)):
        engine = build_engine(
            policy=policy, blocks=9, tiers=tiers, watermark=0.0, prefix=False, batch_size=4, max_batch_size=4, **LIMITS
        )
        engine.fake.tiers.delay = 5
        for i in range(8):
            engine.add(request(str(i), [i] * (4 + i), max_tokens=30))
        for (name, _), found in drive(engine).items():
            whole = [int(name)] * (4 + int(name))
            for token in found:
                assert token == next_token(whole)
                whole.append(token)
        counts = engine.scheduler.blocks.tiers.counts
        assert (counts.loaded_from_host > 0) == (tiers[0] > 0) and (counts.loaded_from_disk > 0) == (tiers[1] > 0)
