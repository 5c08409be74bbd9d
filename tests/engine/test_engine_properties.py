"""Random arrivals, lengths, aborts and tiny pools: nothing is lost, nothing is shared wrongly, everything ends."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.conftest import assert_whole, build_engine, request
from tests.engine.fake_executor import next_token

PROMPTS = st.tuples(st.integers(0, 3), st.integers(1, 45))  # (which family of prompts, length): families share prefixes


@settings(max_examples=120, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 20), PROMPTS, st.integers(0, 14)), min_size=1, max_size=14),
    aborts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 13)), max_size=5),
    blocks=st.integers(8, 24),
    overlap=st.booleans(),
    deterministic=st.booleans(),
    prefix=st.booleans(),
    fill_buckets=st.booleans(),
    chunk_size=st.sampled_from([None, 5, 16]),
    max_preemptions=st.integers(0, 2),
    prefill_rows=st.integers(1, 4),
)
def test_every_request_ends_and_the_pool_is_whole(
    arrivals, aborts, blocks, overlap, deterministic, prefix, fill_buckets, chunk_size, max_preemptions, prefill_rows
) -> None:
    engine = build_engine(
        blocks=blocks,
        overlap=overlap,
        deterministic=deterministic,
        prefix=prefix,
        fill_buckets=fill_buckets,
        chunk_size=chunk_size,
        max_preemptions=max_preemptions,
        max_num_seqs=4,
        max_model_len=60,
        buckets={"prefill_buckets": (4, 12, 32), "prefill_rows": prefill_rows},
    )
    outputs: dict[str, list[int]] = {}
    finished: dict[str, str] = {}
    prompts: dict[str, list[int]] = {}
    aborted: set[str] = set()
    for step in range(3000):
        for i, (at, (family, length), tokens) in enumerate(arrivals):
            if at == step:
                prompts[str(i)] = [family] * length
                engine.add(request(str(i), prompts[str(i)], max_tokens=tokens))
        for at, i in aborts:
            if at == step and engine.abort(str(i)):
                aborted.add(str(i))
        for output in engine.step():
            assert output.request_id not in finished, "an output after the end"
            outputs.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish_reason is not None:
                finished[output.request_id] = output.finish_reason
            assert output.error is None
        if not engine.has_work and step > 40:
            break
    assert_whole(engine)
    assert set(finished) == set(prompts)
    for name, prompt in prompts.items():
        whole = list(prompt)
        for token in outputs[name]:
            assert token == next_token(whole)
            whole.append(token)
        if name not in aborted:
            assert len(outputs[name]) == arrivals[int(name)][2]
    assert max(engine.fake.preemptions.values(), default=0) <= max_preemptions
