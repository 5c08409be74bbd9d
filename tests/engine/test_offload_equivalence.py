"""Preempted to host memory or to a disk, however slow and broken: the tokens are those of an undisturbed run."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.core.plan import Move, MoveKind, Tier
from jaxserve.sched.victims import Claim, Fate, Victim
from tests.engine.conftest import assert_whole, build_engine, drive, request
from tests.engine.fake_executor import next_token
from tests.engine.test_equivalence import expected, prompts

DISK_STEPS = (0, 1, 7)


class Always:
    """The youngest is preempted, to the first of the wanted fates that has room."""

    def __init__(self, *fates: Fate) -> None:
        self.fates = fates
        self.engine = None

    def choose(self, claim: Claim) -> Victim:
        sequence = claim.candidates[-1]
        blocks = self.engine.scheduler.blocks
        for fate in self.fates:
            if fate.tier is None or blocks.tiers.room(fate.tier) >= blocks.blocks_for(sequence.num_computed):
                return Victim(sequence, fate)
        return Victim(sequence, Fate.RECOMPUTE)


def engine_with(*fates: Fate, tiers: tuple[int, int, int] = (40, 40, 20), **options):
    victims = Always(*fates)
    engine = build_engine(tiers=tiers, victims=victims, max_model_len=64, watermark=0.0, **options)
    victims.engine = engine
    return engine


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("fate", list(Fate))
@pytest.mark.parametrize("delay", DISK_STEPS)
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_preempted_is_undisturbed(overlap: bool, fate: Fate, delay: int, chunk_size: int | None) -> None:
    engine = engine_with(fate, blocks=9, overlap=overlap, chunk_size=chunk_size, prefix=False)
    engine.fake.tiers.delay = delay
    batch = prompts(12, longest=20)
    sequences = [s for i, p in enumerate(batch) for s in engine.add(request(str(i), p, max_tokens=30))]
    found = drive(engine)
    assert found == {(str(i), 0): expected(prompt, 30) for i, prompt in enumerate(batch)}
    counts = engine.scheduler.blocks.tiers.counts
    assert sum(s.preemptions for s in sequences) > 5, "the pool was to be too small"
    assert (counts.loaded_from_host > 0) == (fate is Fate.HOST)
    assert (counts.loaded_from_disk > 0) == (fate is Fate.DISK)


@pytest.mark.parametrize("fate", [Fate.HOST, Fate.DISK])
def test_what_was_parked_is_not_computed_again(fate: Fate) -> None:
    engine = engine_with(fate, blocks=9, prefix=False)
    batch = prompts(8, longest=20)
    for i, prompt in enumerate(batch):
        engine.add(request(str(i), prompt, max_tokens=30))
    drive(engine)
    computed = sum(plan.num_tokens for plan in engine.fake.plans)
    wanted = sum(len(prompt) + 29 for prompt in batch)
    assert wanted <= computed <= wanted + len(batch), "at most the excess token of each, which overlap drops"


BREAKS: dict[str, Callable[[Move], bool]] = {
    "full": lambda move: move.kind is MoveKind.SAVE,
    "unreadable": lambda move: move.kind is MoveKind.FETCH,
    "third save": lambda move: move.kind is MoveKind.SAVE and move.key % 3 == 0,
    "third fetch": lambda move: move.kind is MoveKind.FETCH and move.key % 3 == 0,
}


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("delay", DISK_STEPS)
def test_a_failing_disk_costs_time_and_nothing_else(broken: str, delay: int) -> None:
    engine = engine_with(Fate.DISK, blocks=9, prefix=False)
    engine.fake.tiers.delay, engine.fake.tiers.fails = delay, BREAKS[broken]
    batch = prompts(12, longest=20)
    for i, prompt in enumerate(batch):
        engine.add(request(str(i), prompt, max_tokens=30))
    assert drive(engine) == {(str(i), 0): expected(prompt, 30) for i, prompt in enumerate(batch)}
    counts = engine.scheduler.blocks.tiers.counts
    assert counts.failed_saves + counts.failed_fetches > 0


def test_a_full_disk_is_left_alone_for_longer_and_longer() -> None:
    engine = engine_with(Fate.DISK, blocks=9, prefix=False, max_preemptions=50)
    engine.fake.tiers.fails = BREAKS["full"]
    for i, prompt in enumerate(prompts(30, longest=20)):
        engine.add(request(str(i), prompt, max_tokens=30))
    drive(engine)
    parkings = sum(1 for plan in engine.fake.plans if any(move.target is Tier.DISK for move in plan.moves))
    assert 1 <= parkings <= 8


@pytest.mark.parametrize(("deterministic", "shared"), [(False, 40), (True, 32)])
def test_evicted_prefixes_come_back_from_the_host(deterministic: bool, shared: int) -> None:
    """The step that loads them has no row that reads them, not even where steps do not mix prompts and decodes."""
    rng = random.Random(4)
    families = [[rng.randrange(97) for _ in range(40)] for _ in range(4)]
    engine = build_engine(blocks=12, tiers=(40, 0, 0), watermark=0.0, deterministic=deterministic)
    for turn in range(3):
        for f, family in enumerate(families):  # one after the other: each evicts what came before
            engine.add(request(f"{turn}-{f}", [*family, turn], max_tokens=4))
            found = drive(engine)
            assert found == {(f"{turn}-{f}", 0): expected([*family, turn], 4)}
    counts = engine.scheduler.blocks.tiers.counts
    assert counts.prefixes_kept >= 20 and counts.prefixes_loaded >= 8 * 4
    assert engine.scheduler.blocks.prefix_hits >= 8 * shared


@pytest.mark.parametrize("fate", list(Fate))
@pytest.mark.parametrize("delay", DISK_STEPS)
@pytest.mark.parametrize("later", [0, 1, 2, 4, 8])
def test_an_abort_of_what_is_away_leaves_nothing(fate: Fate, delay: int, later: int) -> None:
    engine = engine_with(fate, blocks=9, prefix=False)
    engine.fake.tiers.delay = delay
    for i, prompt in enumerate(prompts(8, longest=20)):
        engine.add(request(str(i), prompt, max_tokens=30))
    first = None
    for step in range(400):
        engine.step()
        victims = engine.fake.plans[-1].preempted
        if victims and first is None:
            first = step
        if first is not None and step == first + later:
            break
    for i in range(8):
        engine.abort(str(i))
    assert engine.scheduler.blocks.tiers.used(Tier.HOST) == engine.scheduler.blocks.tiers.used(Tier.DISK) == 0
    drive(engine)


@pytest.mark.parametrize("fate", [Fate.HOST, Fate.DISK])
def test_a_failed_step_forgets_what_is_parked(fate: Fate) -> None:
    engine = engine_with(fate, blocks=9, prefix=False)
    engine.fake.tiers.delay = 5
    engine.fake.fail_wait.add(25)
    for i, prompt in enumerate(prompts(12, longest=20)):
        engine.add(request(str(i), prompt, max_tokens=30))
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason:
                reasons[output.request_id] = str(output.finish_reason)
    assert set(reasons.values()) == {"error", "length"} and len(reasons) == 12
    assert engine.fake.resets == 1 and not engine.scheduler.blocks.tiers.counts.failed_fetches, "it is not looked for"
    assert_whole(engine)


PROMPTS = st.tuples(st.integers(0, 3), st.integers(1, 30))


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 12), PROMPTS, st.integers(0, 30)), min_size=4, max_size=14),
    aborts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 13)), max_size=5),
    blocks=st.integers(8, 14),
    tiers=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 10)),
    fates=st.permutations(list(Fate)),
    delay=st.sampled_from([0, 1, 2, 9]),
    failures=st.sets(st.integers(0, 60)),
    overlap=st.booleans(),
    prefix=st.booleans(),
    chunk_size=st.sampled_from([None, 5, 16]),
    max_preemptions=st.integers(0, 3),
)
def test_every_request_ends_with_its_tokens_and_the_tiers_are_empty(
    arrivals, aborts, blocks, tiers, fates, delay, failures, overlap, prefix, chunk_size, max_preemptions
) -> None:
    engine = engine_with(
        *fates, tiers=tiers, blocks=blocks, overlap=overlap, prefix=prefix, chunk_size=chunk_size,
        max_preemptions=max_preemptions, max_num_seqs=4, buckets={"prefill_buckets": (4, 12, 32)},
    )  # fmt: skip
    engine.fake.tiers.delay, engine.fake.tiers.fails = delay, lambda move: move.key in failures
    outputs: dict[str, list[int]] = {}
    finished: set[str] = set()
    aborted: set[str] = set()
    given_prompts: dict[str, list[int]] = {}
    for step in range(4000):
        for i, (at, (family, length), tokens) in enumerate(arrivals):
            if at == step:
                given_prompts[str(i)] = [family] * length
                engine.add(request(str(i), given_prompts[str(i)], max_tokens=tokens))
        aborted |= {str(i) for at, i in aborts if at == step and engine.abort(str(i))}
        for output in engine.step():
            assert output.error is None
            outputs.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish_reason is not None:
                finished.add(output.request_id)
        if not engine.has_work and step > 60:
            break
    assert finished == set(given_prompts)
    assert_whole(engine)
    for name, prompt in given_prompts.items():
        whole = list(prompt)
        for token in outputs[name]:
            assert token == next_token(whole)
            whole.append(token)
        if name not in aborted:
            assert len(outputs[name]) == arrivals[int(name)][2]
    assert max(engine.fake.preemptions.values(), default=0) <= max_preemptions
