"""However a request is scheduled, its tokens are the same: checked against the model itself, on the fake device."""

import random

import pytest

from tests.engine.conftest import build_engine, drive, request
from tests.engine.fake_executor import VOCAB, next_token


def expected(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


def prompts(count: int, seed: int = 1, longest: int = 90) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("fill_buckets", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 3, 8])
def test_chunked_and_batched_is_alone(overlap: bool, fill_buckets: bool, chunk_size: int | None) -> None:
    engine = build_engine(overlap=overlap, fill_buckets=fill_buckets, chunk_size=chunk_size)
    batch = prompts(20)
    for i, prompt in enumerate(batch):
        engine.add(request(str(i), prompt))
    found = drive(engine)
    assert found == {(str(i), 0): expected(prompt, 8) for i, prompt in enumerate(batch)}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("max_preemptions", [0, 1, 3])
def test_preempted_is_undisturbed(overlap: bool, max_preemptions: int) -> None:
    engine = build_engine(blocks=8, overlap=overlap, max_preemptions=max_preemptions, max_model_len=64, watermark=0.0)
    batch = prompts(12, longest=20)
    sequences = [s for i, p in enumerate(batch) for s in engine.add(request(str(i), p, max_tokens=30))]
    found = drive(engine)
    assert found == {(str(i), 0): expected(prompt, 30) for i, prompt in enumerate(batch)}
    assert max(s.preemptions for s in sequences) <= max_preemptions
    assert any(s.preemptions for s in sequences) == (max_preemptions > 0), "the pool was to be too small"


def test_a_prefix_hit_changes_nothing_and_saves_work() -> None:
    common = prompts(1, longest=64)[0] * 3
    batch = [[*common[:40], i] for i in range(6)]
    found, computed = {}, {}
    for prefix in (True, False):
        engine = build_engine(prefix=prefix)
        engine.add(request("0", batch[0]))
        found[prefix] = drive(engine)
        for i, prompt in enumerate(batch[1:], start=1):
            engine.add(request(str(i), prompt))
        found[prefix] |= drive(engine)
        computed[prefix] = sum(row.length for plan in engine.fake.plans for row in plan.prefills)
    assert found[True] == found[False]
    assert computed[True] == computed[False] - 5 * 40


def test_different_salts_share_nothing() -> None:
    engine = build_engine()
    for salt in ("a", "b"):
        engine.add(request(salt, list(range(40)), salt=salt))
        drive(engine)
    assert engine.scheduler.blocks.prefix_hits == 0


def test_each_completion_has_its_own_seed() -> None:
    engine = build_engine()
    prompt = list(range(30))
    engine.add(request("r", prompt, n=3, seed=5))
    assert drive(engine) == {("r", i): expected(prompt, 8, 5 + i) for i in range(3)}


def test_deterministic_steps_are_pinned_and_aligned() -> None:
    engine = build_engine(deterministic=True)
    batch = prompts(8)
    for i, prompt in enumerate([*batch, batch[0]]):
        engine.add(request(str(i), prompt))
    found = drive(engine)
    assert found == {(str(i), 0): expected(prompt, 8) for i, prompt in enumerate([*batch, batch[0]])}
    assert len({plan.bucket for plan in engine.fake.plans}) == 2
    for plan in engine.fake.plans:
        assert not (plan.decodes and plan.prefills) and len(plan.prefills) <= 1
        assert all(row.start % 32 == 0 for row in plan.prefills)


@pytest.mark.parametrize("overlap", [True, False])
def test_stop_tokens_and_min_tokens(overlap: bool) -> None:
    prompt = [1, 2, 3]
    whole = expected(prompt, 20)
    stop = whole[4]
    at = whole.index(stop) + 1
    engine = build_engine(overlap=overlap)
    engine.add(request("eos", prompt, max_tokens=20, eos=(stop,)))
    engine.add(request("ignored", prompt, max_tokens=20, eos=(stop,), ignore_eos=True))
    engine.add(request("stop", prompt, max_tokens=20, stop_token_ids=(stop,)))
    found = drive(engine)
    assert found["eos", 0] == found["stop", 0] == whole[:at]
    assert found["ignored", 0] == whole


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("max_tokens", [0, 1, 2])
def test_few_tokens(overlap: bool, max_tokens: int) -> None:
    engine = build_engine(overlap=overlap)
    for i in range(4):
        engine.add(request(str(i), [i] * 50, max_tokens=max_tokens))
    found = drive(engine)
    assert [len(found[str(i), 0]) for i in range(4)] == [max_tokens] * 4


def test_a_full_sequence_of_the_pools_size() -> None:
    engine = build_engine(blocks=4, max_model_len=1000)
    engine.add(request("r", [1] * 20, max_tokens=12))
    engine.add(request("s", [2] * 20, max_tokens=None))
    found = drive(engine)
    assert len(found["r", 0]) == 12 and len(found["s", 0]) == 12
