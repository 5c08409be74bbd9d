"""Parked in host memory or on the disk, or computed again: on the real engine, the tokens of an undisturbed run."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.plan import Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.runtime.offload.disk_store import SUFFIX, DiskStore
from jaxserve.sched.policies import POLICIES
from jaxserve.sched.victims import CheapestFirst, Claim, Victim, Wait, YoungestFirst, open_fates
from tests.equivalence.conftest import SMALL_POOL
from tests.equivalence.test_schedules import MIXED, tokens

# Each tier has its own programs; tests/engine/test_offload_equivalence.py is the quick one.
pytestmark = pytest.mark.slow

MIB = 1 << 20
NO_PREFIXES: dict[str, Any] = SMALL_POOL | {"enable_prefix_caching": False}


def tier_settings(tier: str, folder: Path) -> dict[str, Any]:
    """Of a megabyte on the "host" or the "disk"; of another name: none."""
    of_disk = {"offload_disk_bytes": MIB, "offload_disk_dir": str(folder)}
    return {"host": {"offload_host_bytes": MIB}, "disk": of_disk}.get(tier, {})


@pytest.fixture(scope="module")
def reference(base: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Each request alone."""
    return [tokens(base, [prompt], [params])[0] for prompt, params in zip(prompts, MIXED, strict=True)]


@pytest.mark.parametrize(
    ("tier", "overlap"),
    [
        (Tier.HOST, True),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in [(Tier.HOST, False), (Tier.DISK, True), (Tier.DISK, False)]
        ),
    ],
)
def test_parked_is_undisturbed(
    make_llm: Callable[..., LLM], prompts: list[list[int]], reference: list[list[int]], tmp_path: Path,
    tier: Tier, overlap: bool,
) -> None:  # fmt: skip
    llm = make_llm(**NO_PREFIXES, **tier_settings(tier, tmp_path), overlap=overlap)
    outputs = llm.generate(prompts, MIXED, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == reference
    ledger = llm.engine.scheduler.blocks.tiers
    loaded = {Tier.HOST: ledger.counts.loaded_from_host, Tier.DISK: ledger.counts.loaded_from_disk}
    assert loaded[tier] > 0 and sum(loaded.values()) == loaded[tier]
    assert ledger.used(Tier.HOST) == ledger.used(Tier.DISK) == 0
    assert llm.runner.compilations_after_warmup == 0
    llm.close()
    assert not list(tmp_path.glob(f"*{SUFFIX}"))


class Oldest:
    """The sequence that was admitted first is preempted: the most is lost."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks

    def choose(self, claim: Claim) -> Victim:
        return Victim(claim.candidates[0], open_fates(self._blocks, claim.candidates[0])[0])


class EachInTurn:
    """In place of `CheapestFirst`: every victim policy, another one with every choice."""

    def __init__(self, blocks: BlockManager, *costs: Any) -> None:
        self._policies = itertools.cycle([CheapestFirst(blocks, *costs), YoungestFirst(blocks), Oldest(blocks)])

    def choose(self, claim: Claim) -> Victim | Wait:
        return next(self._policies).choose(claim)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["recompute", "host", "disk"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_every_victim_and_tier(
    make_llm: Callable[..., LLM], prompts: list[list[int]], reference: list[list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, policy: str, way: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("jaxserve.engine.host_side.CheapestFirst", EachInTurn)
    batches = {"batch_size": 8} if policy == "static" else {}
    settings = tier_settings(way, tmp_path) | batches | {"tpot_slo_s": 0.05}
    llm = make_llm(**NO_PREFIXES | settings, policy=policy)
    outputs = llm.generate(prompts, MIXED, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == reference
    preemptions = sum(output.metrics.preemptions for output in outputs if output.metrics)
    assert preemptions >= 3, "the pool was to be too small for each of the three to choose"
    counts = llm.engine.scheduler.blocks.tiers.counts
    assert (counts.loaded_from_host > 0) == (way == "host") and (counts.loaded_from_disk > 0) == (way == "disk")
    llm.close()


@pytest.mark.slow
def test_a_disk_that_loses_blocks_costs_no_token(
    make_llm: Callable[..., LLM],
    prompts: list[list[int]],
    reference: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every five files one is refused, one damaged and one removed as soon as it is written."""
    write = DiskStore.write

    def unreliable(store: DiskStore, slot: int, key: int, content: memoryview) -> bool:
        if key % 5 == 0:
            return False
        done, path = write(store, slot, key, content), tmp_path / f"{slot:08d}{SUFFIX}"
        if key % 5 == 1:
            path.write_bytes(path.read_bytes()[:-4] + b"lost")
        elif key % 5 == 2:
            path.unlink()
        return done

    monkeypatch.setattr(DiskStore, "write", unreliable)
    llm = make_llm(**NO_PREFIXES, offload_disk_bytes=MIB, offload_disk_dir=str(tmp_path))
    assert tokens(llm, prompts, MIXED) == reference
    ledger = llm.engine.scheduler.blocks.tiers
    assert ledger.counts.failed_saves > 0 and ledger.counts.failed_fetches > 0 and ledger.used(Tier.DISK) == 0
    llm.close()
    assert not list(tmp_path.glob(f"*{SUFFIX}"))


@pytest.mark.slow
def test_evicted_prefixes_come_back_from_the_host(make_llm: Callable[..., LLM], prompts: list[list[int]]) -> None:
    """Three long prompts in turn do not fit the pool together: each turn finds the ones before in host memory."""
    llm = make_llm(**SMALL_POOL, offload_host_bytes=MIB, max_model_len=192)
    longest = [[7 * i % 211 for i in range(start, start + 110)] for start in (0, 500, 900)]
    first = [tokens(llm, [prompt]) for prompt in longest]
    blocks = llm.engine.scheduler.blocks
    hits = blocks.prefix_hits
    assert [tokens(llm, [prompt]) for prompt in longest] == first
    assert blocks.tiers.counts.prefixes_loaded > 6 and blocks.prefix_hits >= hits + 3 * 96
    llm.update_params(llm.params)
    assert blocks.tiers.used(Tier.HOST) == 0, "new weights: nothing kept is worth anything"
    assert [tokens(llm, [prompt]) for prompt in longest] == first


@pytest.mark.slow
def test_deterministic_mode_keeps_its_bits_through_the_host(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(deterministic=True, offload_host_bytes=MIB)
    longest = [[7 * i % 211 for i in range(start, start + 150)] for start in range(0, 9 * 37, 37)]

    def bits() -> list[Any]:
        params = SamplingParams(temperature=0.0, max_tokens=10, logprobs=5)
        outputs = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0] for prompt in longest]
        return [(entry.token, entry.logprob, entry.top) for output in outputs for entry in output.logprobs or []]

    first = bits()
    assert bits() == first
    assert llm.engine.scheduler.blocks.tiers.counts.prefixes_loaded > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["recompute", "host", "disk"])
def test_preempted_for_a_higher_class_is_undisturbed(
    make_llm: Callable[..., LLM],
    prompts: list[list[int]],
    reference: list[list[int]],
    tmp_path: Path,
    way: str,
) -> None:
    """Long requests fill the pool; three short ones come later, go before them, and take their blocks."""
    llm = make_llm(**NO_PREFIXES, **tier_settings(way, tmp_path), ordering="priority")
    found: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    displaced: set[str] = set()
    for step in range(400):
        for i, (prompt, params) in enumerate(zip(prompts, MIXED, strict=True)):
            late = i < 3
            if step == (12 if late else 0):
                request = llm.make_request(prompt, params, request_id=str(i))
                llm.engine.add(dataclasses.replace(request, priority=0 if late else 1))
        for output in llm.engine.step():
            found[output.request_id] += output.tokens
            if output.metrics is not None and output.metrics.preemptions:
                displaced.add(output.request_id)
        if step > 12 and not llm.engine.has_work:
            break
    assert [found[str(i)] for i in range(len(prompts))] == reference
    assert displaced and not displaced & {"0", "1", "2"}
    ledger = llm.engine.scheduler.blocks.tiers
    assert ledger.used(Tier.HOST) == ledger.used(Tier.DISK) == 0
    llm.close()
