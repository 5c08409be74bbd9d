"""What every policy and every ordering must keep, whatever arrives: run on the fake device, which checks each token.

Every request ends, with its own tokens; the step's budget and buckets are respected; the pool is whole at the end.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.sched.orderings import ORDERINGS
from jaxserve.sched.policies import POLICIES
from tests.engine.conftest import assert_whole, build_engine, request
from tests.engine.fake_executor import next_token

TOKENS = 32
LIMITS = {"max_num_seqs": 4, "max_num_batched_tokens": TOKENS, "max_model_len": 60}
BUCKETS = {"prefill_buckets": (4, 12, TOKENS), "prefill_rows": 3}

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
)
def test_every_request_ends_with_its_own_tokens(policy, ordering, arrivals, aborts, blocks, overlap, mixes) -> None:
    engine = build_engine(
        policy=policy, ordering=ordering, blocks=blocks, overlap=overlap, deterministic=not mixes, buckets=BUCKETS,
        **LIMITS,
    )  # fmt: skip
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
        assert 0 < plan.num_tokens <= TOKENS + LIMITS["max_num_seqs"] * (not mixes)
        assert not {row.sequence for row in (*plan.decodes, *plan.prefills)} & set(plan.preempted)
