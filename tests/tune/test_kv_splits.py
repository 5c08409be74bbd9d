"""Splits of the KV pool among tenants: what they say, which are tried, and that the simulation heeds them."""

import pickle
import random
from pathlib import Path

import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.metrics.slo import Bound
from jaxserve.sim.workload import Workload
from jaxserve.tune.kv_splits import split, splits
from jaxserve.tune.search import search
from jaxserve.tune.space import Space
from jaxserve.tune.trial import Problem, evaluate, evaluated

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.004, token_s=4e-5, pair_s=2e-9, context_s=4e-8, row_s=1e-5,
    padded=True,
)  # fmt: skip
TENANTS = Tenants(
    [
        Tenant(name="chat", keys=("k",), weight=2.0, kv_guaranteed=0.3),
        Tenant(name="batch", kv_max=0.95, ttft_slo_s=60.0),
    ]
)


def shares(tenants: Tenants) -> dict[str, tuple[float, float]]:
    return {t.name: (t.kv_guaranteed, t.kv_max) for t in tenants}


def test_a_split_says_every_share() -> None:
    assert split(TENANTS, "given") is TENANTS
    assert set(shares(split(TENANTS, "shared")).values()) == {(0.0, 1.0)}
    found = split(TENANTS, "chat:0.5..1+batch:0..0.4")
    assert shares(found) == {"chat": (0.5, 1.0), "batch": (0.0, 0.4), "default": (0.0, 1.0)}
    assert found["chat"].weight == 2.0 and found["chat"].keys == ("k",) and found["batch"].ttft_slo_s == 60.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody:0..1", "known: chat, batch, default"),
        ("half", "no tenant ''"),
        ("chat:0.5", "TENANT:GUARANTEED..MOST"),
        ("chat:a..b", "TENANT:GUARANTEED..MOST"),
        ("chat:0.5..0.4", "not below kv_guaranteed"),
        ("chat:0.6..1+batch:0.6..1", "add up to at most 1"),
    ],
)
def test_a_split_that_cannot_work_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split(TENANTS, text)


def test_who_sends_nothing_has_nothing_to_split() -> None:
    assert splits(TENANTS, ["chat"]) == () and splits(TENANTS, ["unknown", "default"]) == ()
    found = splits(TENANTS, ["chat", "batch"])
    assert found[:2] == ("given", "shared") and "chat:0.5..1" in found and "batch:0..0.5" in found and len(found) == 10
    assert splits(Tenants(), ["a", "b"]) == ()  # both are the default tenant
    plain = Tenants([Tenant(name="a"), Tenant(name="b")])
    assert "shared" not in splits(plain, "ab")  # as the file says: once


def test_tenants_go_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS.to_toml())
    assert list(Tenants.from_toml(path)) == list(TENANTS)


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """Long batch requests fill the pool; chat comes in between and cannot start."""
    rng = random.Random(1)
    lines, at = [], 0.0
    for i in range(150):
        at += rng.expovariate(15.0)
        chat = i % 3 == 0
        prompt, output = (rng.randint(8, 40), rng.randint(4, 12)) if chat else (rng.randint(200, 400), 200)
        lines.append(
            f'{{"arrival_s": {at}, "prompt_tokens": {prompt}, "output_tokens": {output}, '
            f'"tenant": "{"chat" if chat else "batch"}"}}\n'
        )
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(lines))
    base = EngineConfig.from_settings(
        num_blocks=400, block_size=16, max_num_seqs=32, max_num_batched_tokens=256, max_waiting=1000
    )
    tenants = Tenants([Tenant(name="chat", ttft_slo_s=0.25), Tenant(name="batch", ttft_slo_s=60.0)])
    return Problem(base, Workload(trace=str(path)), COST, Bound.parse_all("tpot<5"), tenants=tenants)


def test_a_guarantee_helps_those_who_find_the_pool_full(problem: Problem) -> None:
    """A limit on the others helps them as much, and leaves blocks idle while they are away."""
    given, limited, guaranteed = (
        evaluate(problem, {"kv_split": text}, 150) for text in ("given", "batch:0..0.5", "chat:0.25..1")
    )
    assert given.goodput < 0.95 and limited.goodput == guaranteed.goodput == 1.0
    assert guaranteed.worth > 1.05 * given.worth > 1.05 * limited.worth


@pytest.mark.slow
def test_the_guarantee_is_found(problem: Problem) -> None:
    assert problem.tenants is not None
    found = search(problem, Space({"kv_split": splits(problem.tenants, ["chat", "batch"])}), 150)
    assert found.best.choice["kv_split"] in ("chat:0.25..1", "chat:0.5..1")


def test_buckets_are_fitted_to_the_steps_of_a_split_once_in_a_process(problem: Problem) -> None:
    """Also where each trial brings its own copy of the problem, as in other processes."""
    prices = [
        evaluated(pickle.loads(pickle.dumps(problem)), {"buckets": "fitted-6", "kv_split": text}, 60).simulated
        for text in ("shared", "chat:0.25..1", "shared", "chat:0.25..1")
    ]
    assert prices == [60 + 60, 60 + 60, 60, 60]


def test_a_split_needs_tenants(problem: Problem) -> None:
    alone = Problem(problem.base, problem.workload, COST, problem.bounds)
    assert "--tenants" in evaluate(alone, {"kv_split": "shared"}, 10).why
