"""A move's kind follows from its tiers; a result of nothing but one token is as ragged as any."""

import itertools

import pytest

from jaxserve.core.plan import NO_BUCKET, NOTHING, ONE_TOKEN, Move, MoveKind, Row, StepPlan, StepResult, Tier

KINDS = {
    MoveKind.SAVE: {(Tier.DEVICE, Tier.HOST), (Tier.DEVICE, Tier.DISK)},
    MoveKind.LOAD: {(Tier.HOST, Tier.DEVICE), (Tier.STAGED, Tier.DEVICE)},
    MoveKind.FETCH: {(Tier.DISK, Tier.STAGED)},
    MoveKind.UNSTAGE: {(Tier.STAGED, Tier.DISK)},
    MoveKind.DROP: {(Tier.DISK, Tier.NONE), (Tier.STAGED, Tier.NONE)},
}


def test_every_way_between_tiers_is_of_one_kind_or_of_none() -> None:
    assert set(KINDS) == set(MoveKind)
    for source, target in itertools.product(Tier, repeat=2):
        kinds = [kind for kind, ways in KINDS.items() if (source, target) in ways]
        move = Move(source, 1, target, 2, key=0)
        if kinds:
            assert [move.kind] == kinds
        else:
            with pytest.raises(KeyError):
                _ = move.kind


def test_a_result_of_one_token_is_as_ragged_as_the_plan() -> None:
    decode, chunk = Row(0, 8, 1, ONE_TOKEN), Row(1, 0, 4, NOTHING)
    plan = StepPlan(1, (decode,), (chunk, chunk._replace(wants=ONE_TOKEN)), NO_BUCKET)
    result = StepResult.of_one_token(plan, 7)
    assert result.counts.tolist() == [1, 0, 1] and result.tokens.tolist() == [7, 7]
