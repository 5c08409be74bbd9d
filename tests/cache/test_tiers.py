"""The ledger of what is away: room, the way to the disk, and two that wait for each other's staging."""

from jaxserve.cache.tiers import TierLedger
from jaxserve.core.plan import Move, Moved, MoveKind, Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request, Sequence


def sequence() -> Sequence:
    return Sequence(Request(id="r", prompt=(1,) * 50, params=SamplingParams()), 0, 1000, 0)


def parked(ledger: TierLedger, blocks: list[int], tier: Tier, ok: bool = True) -> Sequence:
    found = sequence()
    ledger.park(found, blocks, len(blocks) * 8, tier)
    settle(ledger, ok)
    return found


def settle(ledger: TierLedger, ok: bool = True) -> tuple[Move, ...]:
    """Perform what is planned."""
    moves = ledger.take_moves()
    ledger.settle([Moved(move, ok) for move in moves if Tier.DISK in (move.source, move.target)])
    return moves


def test_rooms_add_up() -> None:
    ledger = TierLedger(4, 6, 10)
    first = parked(ledger, [1, 2, 3], Tier.HOST)
    second = parked(ledger, [4, 5, 6, 7], Tier.DISK)
    assert (ledger.room(Tier.HOST), ledger.room(Tier.DISK)) == (1, 2)
    ledger.forget(first)
    ledger.forget(second)
    assert (ledger.room(Tier.HOST), ledger.room(Tier.DISK)) == (4, 6)
    assert [move.kind for move in settle(ledger)] == [MoveKind.DROP] * 4


def test_kept_prefixes_are_dropped_for_sequences_oldest_first() -> None:
    ledger = TierLedger(3)
    for link in (b"a", b"b", b"c", b"a", b"d"):  # a is evicted again: still kept, and young again
        ledger.keep_prefix(link, 1)
    assert ledger.find_prefixes([b"c", b"b"]) == [b"c"] and not ledger.find_prefixes([b"b"])
    assert ledger.room(Tier.HOST) == 3
    parked(ledger, [5, 6], Tier.HOST)
    assert ledger.num_prefixes == 1 and ledger.used(Tier.HOST) == 3


def test_a_claimed_prefix_that_the_device_evicts_as_well_leaves_no_slot_behind() -> None:
    ledger = TierLedger(3)
    ledger.keep_prefix(b"a", 1)
    claimed = ledger.claim_prefixes([b"a"])
    ledger.keep_prefix(b"a", 2)
    ledger.load_prefixes(sequence(), claimed, [7])
    assert ledger.used(Tier.HOST) == ledger.num_prefixes == 1
    assert [(m.source_block, m.target) for m in ledger.take_moves()][-1] == (claimed[b"a"], Tier.DEVICE)


def test_the_way_to_the_disk_is_bounded_but_never_closed_to_one_sequence() -> None:
    ledger = TierLedger(0, 20, 5)
    assert ledger.room(Tier.DISK) == 20, "nothing is on its way: one sequence of any length may go"
    ledger.park(sequence(), list(range(1, 9)), 64, Tier.DISK)
    assert ledger.room(Tier.DISK) == 0
    settle(ledger)
    assert ledger.room(Tier.DISK) == 12


def test_a_fetch_that_waits_for_staging_takes_it_from_one_that_nobody_loads() -> None:
    ledger = TierLedger(0, 20, 5)
    first, second = (parked(ledger, [i, i + 1, i + 2, i + 3], Tier.DISK) for i in (1, 5))
    assert not ledger.ready(first)
    assert not ledger.ready(second), "the first is still being fetched"
    settle(ledger)
    assert ledger.ready(first)
    assert not ledger.ready(second)
    moves = settle(ledger)
    assert [move.kind for move in moves] == [MoveKind.UNSTAGE] * 4 + [MoveKind.FETCH] * 4
    assert ledger.ready(second)
    assert ledger.unpark(second, 0, [9, 10, 11, 12]) == 4 and ledger.loading(second)
    assert not ledger.ready(first)
    settle(ledger)
    assert ledger.ready(first) and not ledger.loading(second)


def test_what_is_lost_is_lost_from_there_on() -> None:
    ledger = TierLedger(0, 20, 20)
    victim = sequence()
    ledger.park(victim, [1, 2, 3, 4], 30, Tier.DISK)
    saves = ledger.take_moves()
    ledger.settle([Moved(move, ok=i != 2) for i, move in enumerate(saves)])
    assert ledger.counts.failed_saves == 1
    assert not ledger.ready(victim)
    assert len(settle(ledger)) == 2, "only what may be there is fetched"
    assert ledger.ready(victim)
    assert ledger.unpark(victim, 1, [9, 9, 9, 9]) == 2
    moves = [(m.source, m.source_block, m.target) for m in ledger.take_moves()]
    slots = [m.target_block for m in saves]
    assert moves == [
        (Tier.DISK, slots[0], Tier.NONE), (Tier.STAGED, slots[1], Tier.DEVICE),
        (Tier.DISK, slots[2], Tier.NONE), (Tier.DISK, slots[3], Tier.NONE),
    ]  # fmt: skip
    assert ledger.used(Tier.DISK) == 0


def test_after_failures_the_disk_rests_longer_and_longer() -> None:
    ledger = TierLedger(0, 20, 20)
    rests = []
    for _ in range(4):
        ledger.forget(parked(ledger, [1, 2], Tier.DISK, ok=False))
        settle(ledger)
        rests.append(0)
        while not ledger.room(Tier.DISK):
            ledger.disk_was_not_tried()
            rests[-1] += 1
    assert rests == [1, 2, 4, 8]
    ledger.forget(parked(ledger, [1], Tier.DISK))
    assert ledger.room(Tier.DISK) == 20


def test_results_from_before_a_reset_are_ignored() -> None:
    ledger = TierLedger(0, 20, 20)
    ledger.park(sequence(), [1, 2], 16, Tier.DISK)
    old = ledger.take_moves()
    ledger.reset()
    fresh = parked(ledger, [3], Tier.DISK)
    ledger.settle([Moved(move, ok=False) for move in old])
    assert not ledger.busy and ledger.counts.failed_saves == 0 and ledger.parked(fresh) is not None
