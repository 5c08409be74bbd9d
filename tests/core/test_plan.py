"""A move's kind follows from the tiers that it goes between."""

import itertools

import pytest

from jaxserve.core.plan import Move, MoveKind, Tier

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
