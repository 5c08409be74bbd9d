"""Which sequence is preempted, and how: the lowest class, the cheapest option, and none that is about to end."""

import pytest

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.buckets import BucketTable
from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence, Status
from jaxserve.costs.model import FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.victims import WAIT, CheapestFirst, Claim, Fate, Wait

TOKEN_S = 1e-4
FORMULA = FormulaCost(
    source="test", overhead_s=0.0, weights_s=0.0, token_s=TOKEN_S, pair_s=1e-8, context_s=0.0, row_s=0.0
)


class Case:
    """A pool of running sequences, and the policy over it."""

    def __init__(self, *, host: int = 0, disk: int = 0, moves: tuple[float, ...] = (1e-5, 1e-5, 1e-3, 1e-3)) -> None:
        self.blocks = BlockManager(CacheConfig(block_size=8, watermark=0.0), 101, tiers=TierLedger(host, disk, 100))
        self.costs = StepCosts(FORMULA)
        self.costs.last_s = 0.01
        limits = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=64)
        names = ("to_host_s", "from_host_s", "to_disk_s", "from_disk_s")
        prices = MoveCosts(**dict(zip(names, moves, strict=True)))
        table = BucketTable.from_config(BucketConfig(), limits)
        self.policy = CheapestFirst(self.blocks, self.costs, prices, table)
        self.running: list[Sequence] = []

    def run(self, tokens: int, *, priority: int = 0, left: int = 100) -> Sequence:
        prompt = tuple(range(len(self.running) * 1000, len(self.running) * 1000 + tokens))
        request = Request(id=str(len(self.running)), prompt=prompt, params=SamplingParams(max_tokens=left))
        sequence = Sequence(request, 0, tokens + left, 0)
        assert self.blocks.admit(sequence, tokens) == 0
        sequence.num_computed, sequence.status, sequence.priority = tokens, Status.RUNNING, priority
        self.running.append(sequence)
        return sequence

    def choose(self, claimant: Sequence, *, must: bool = True, missing: int = 1):
        running = tuple(self.running)
        return self.policy.choose(Claim(claimant, running, missing, must, 0.0, running))


def test_the_lowest_class_gives_way_whatever_it_costs() -> None:
    case = Case(host=100)
    case.run(8, priority=0)
    dear = case.run(400, priority=5)
    case.run(8, priority=1)
    assert case.choose(case.running[0]).sequence is dear


@pytest.mark.parametrize(
    ("host", "disk", "moves", "fate"),
    [
        (100, 100, (1e-5, 1e-5, 1e-3, 1e-3), Fate.HOST),
        (0, 100, (1e-5, 1e-5, 1e-5, 1e-5), Fate.DISK),
        (0, 100, (1e-5, 1e-5, 1.0, 1.0), Fate.RECOMPUTE),
        (100, 100, (1.0, 1.0, 1.0, 1.0), Fate.RECOMPUTE),
        (0, 0, (1e-5, 1e-5, 1e-5, 1e-5), Fate.RECOMPUTE),
        (9, 100, (1e-5, 1e-5, 1e-5, 1e-5), Fate.DISK),
    ],
    ids=["host", "disk alone", "slow disk", "slow host", "no tiers", "a host too small"],
)
def test_the_cheapest_way_that_has_room(host: int, disk: int, moves: tuple[float, ...], fate: Fate) -> None:
    case = Case(host=host, disk=disk, moves=moves)
    victim = case.choose(case.run(80))
    assert victim.fate is fate
    assert victim.prices[fate] == min(victim.prices.values())
    assert (Fate.HOST in victim.prices) == (host >= 10) and (Fate.DISK in victim.prices) == (disk >= 10)


def test_prices_are_the_models() -> None:
    case = Case(host=100, disk=100)
    for _ in range(4):
        case.run(80)
    prices = case.choose(case.running[0]).prices
    assert prices[Fate.RECOMPUTE] == pytest.approx(80 * TOKEN_S + 1e-8 * 80**2 / 2)
    assert prices[Fate.HOST] == pytest.approx(10 * 2e-5)
    assert prices[Fate.DISK] == pytest.approx(10 * 2e-5 + 10 * 2e-3 / 4)


def test_the_cheapest_return_for_a_freed_block() -> None:
    case = Case()
    case.run(80)
    filled = case.run(80)
    case.run(81)  # eleven blocks for one token more
    short = case.run(9)  # two blocks for nine tokens
    assert case.choose(filled).sequence is short


def test_who_is_about_to_end_is_spared_or_waited_for() -> None:
    case = Case()
    case.run(80, left=3)
    ending = case.run(9, left=2)
    stays = case.run(160, left=50)
    claim = case.choose(stays)
    assert claim.sequence is stays and claim.prices[WAIT] == pytest.approx(2 * 0.01 / 3)
    wait = case.choose(stays, must=False)
    assert isinstance(wait, Wait) and wait.spared is stays, "a wait is cheaper than 160 tokens"
    assert wait.prices == claim.prices and min(wait.prices, key=wait.prices.get) == WAIT
    assert case.choose(stays, must=False, missing=40).sequence is stays, "nobody who ends frees so much"
    case.running.remove(stays)
    assert case.choose(ending).sequence in (ending, case.running[0]), "all are about to end, and somebody must"


def test_a_sequence_that_lacks_blocks_for_its_last_tokens_is_not_waited_for() -> None:
    case = Case()
    full, ending = case.run(8, left=2), case.run(7, left=2)
    stays = case.run(160, left=50)
    case.running.remove(ending)
    assert WAIT not in case.choose(stays, must=False).prices, "a second block is needed for token 9"
    case.running[:] = [ending, stays]
    assert WAIT in case.choose(stays, must=False).prices, "its eight tokens fit into its block; the ninth is not stored"
    assert full.blocks and ending.blocks


def test_a_promised_first_token_is_not_waited_away() -> None:
    """Two steps of 10 ms are a fifth of 100 ms."""
    case = Case()
    case.run(79, left=2)
    claimant = case.run(160, left=50)
    claimant.promised_ttft_s = 0.101
    assert isinstance(case.choose(claimant, must=False), Wait)
    claimant.promised_ttft_s = 0.099
    assert case.choose(claimant, must=False).sequence is claimant
    claimant.first_token_s = 0.0
    assert isinstance(case.choose(claimant, must=False), Wait), "it has its first token"


def test_until_the_model_has_learnt_the_youngest_goes_where_there_is_room() -> None:
    case = Case(host=100)
    case.run(80)
    youngest = case.run(8)
    case.run(8, priority=-1)
    case.policy._costs = StepCosts()
    victim = case.choose(case.running[0])
    assert victim.sequence is youngest and victim.fate is Fate.HOST and not victim.prices
