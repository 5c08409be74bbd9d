"""The attacks of S7: what they send, and a short run of them."""

import pytest

from bench.scenarios import s7_hostile
from bench.scenarios.outcome import Row
from bench.scenarios.s7_hostile import ALONE, ATTACKS, GOOD, HIGHEST, LOWEST, Plan, ttft_s
from bench.scenarios.stage import Real, Simulated
from jaxserve.core.sampling import MAX_N
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.drive import Served

QUICK_S = 5.0


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("neighbour", [GOOD, *ATTACKS])
def test_an_attack_asks_for_nothing_that_could_never_be_served(neighbour: str, real: bool) -> None:
    plan = Plan(real, QUICK_S)
    arrivals = plan.both(neighbour, 1)
    pool = plan.common["num_blocks"] * plan.block
    longest = min(pool, Real.BASE["max_model_len"]) if real else pool
    assert all(a.prompt_tokens + a.output_tokens <= longest for a in arrivals)
    assert all(len(a.prefix_blocks) * a.block_tokens <= a.prompt_tokens for a in arrivals)
    assert {a.tenant for a in arrivals} == {"a", "b"}
    assert plan.both(neighbour, 1) == arrivals != plan.both(neighbour, 2)


def test_a_sends_the_same_beside_every_neighbour() -> None:
    plan = Plan(False, QUICK_S)
    alone = plan.both(ALONE, 1)
    assert {a.tenant for a in alone} == {"a"} and len(alone) > 50
    for neighbour in (GOOD, *ATTACKS):
        assert [a for a in plan.both(neighbour, 1) if a.tenant == "a"] == alone


def test_each_attack_is_what_it_is_called() -> None:
    plan = Plan(False, QUICK_S)
    sent = {neighbour: plan.tenant_b(neighbour, 1) for neighbour in (GOOD, *ATTACKS)}
    pool = plan.common["num_blocks"] * plan.block
    assert {a.n for a in sent["n"]} == {MAX_N}
    assert len({(a.priority, a.ttft_slo_s) for a in sent["fields"]}) == 4
    assert {a.priority for a in sent["fields"]} == {HIGHEST, LOWEST}
    assert [(a.at_s, a.prompt_tokens, a.output_tokens) for a in sent["fields"]] == [
        (a.at_s, a.prompt_tokens, a.output_tokens) for a in sent[GOOD]
    ]
    assert all(a.aborts for a in sent["aborts"]) and {a.abort_tokens for a in sent["aborts"]} == {1, None}
    outputs = plan.shapes["outputs"]
    assert plan.common["max_num_seqs"] * outputs.output > pool, "every block is held before the outputs have ended"
    again: dict[tuple[int, ...], int] = {}
    for number, a in enumerate(sent["thrash"]):
        if a.cache_salt:
            continue
        if a.prefix_blocks in again:
            between = sent["thrash"][again[a.prefix_blocks] : number]
            assert sum(other.prompt_tokens for other in between) > pool, "evicted before it comes again"
        again[a.prefix_blocks] = number
    assert len(again) < sum(not a.cache_salt for a in sent["thrash"]), "prefixes do come again"


def test_a_request_that_got_no_token_counts_with_all_the_time() -> None:
    plan = Plan(False, QUICK_S)
    served = [Served(0, Arrival(0.0, 1, 1, "a"), token_s=[0.5]), Served(1, Arrival(0.0, 1, 1, "b"), token_s=[0.1])]
    assert ttft_s(served, 2, plan) == [0.5, plan.until_s]


def test_every_attack_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a` waits 0.1 s beside the ordinary neighbour, and beside one attack longer."""
    stage = Simulated()

    def row(stage: object, plan: Plan, neighbour: str, ordering: str, seed: int) -> Row:
        slow, refused = (neighbour, ordering) == attack, (neighbour, ordering) == refuses
        figures = {s7_hostile.P99: 0.2 if slow else 0.1, "a refused": float(refused)}
        return Row({"ordering": ordering, "neighbour": neighbour}, seed, figures)

    monkeypatch.setattr(s7_hostile, "one_run", row)
    attack = refuses = ("", "")
    assert s7_hostile.run(stage).met
    for ordering, neighbours in s7_hostile.RUNS.items():
        for attack in ((neighbour, ordering) for neighbour in neighbours if neighbour in ATTACKS):
            missed = [bar.name for bar in s7_hostile.run(stage).bars if not bar.met]
            assert missed == ([] if ordering == "fcfs" else [f"a's TTFT P99 under {ordering}, {attack[0]} / good"])
    attack, refuses = ("", ""), ("short", "fair")
    (missed,) = (bar.name for bar in s7_hostile.run(stage).bars if not bar.met)
    assert missed == "requests of a refused, each run but those of fcfs"


@pytest.mark.parametrize(
    "attack", ["outputs", *(pytest.param(name, marks=pytest.mark.slow) for name in ATTACKS if name != "outputs")]
)
def test_no_attack_makes_a_wait_longer_in_a_quick_run(attack: str) -> None:
    plan = Plan(False, 8.0)
    beside = {name: s7_hostile.one_run(Simulated(), plan, name, "fair", 71).figures for name in (GOOD, attack)}
    assert beside[attack][s7_hostile.P99] <= s7_hostile.BAR * beside[GOOD][s7_hostile.P99]
    assert beside[attack]["a refused"] == 0.0


def test_a_quick_run_says_what_became_of_both_tenants() -> None:
    plan = Plan(False, QUICK_S)
    figures = s7_hostile.one_run(Simulated(), plan, "aborts", "fair", 1).figures
    assert 0.0 < figures["a TTFT P50 (s)"] <= figures[s7_hostile.P99] < plan.until_s
    assert figures["a cached"] > 0.5 and figures["a refused"] == 0.0 and figures["b tokens/s"] > 0.0
    alone = s7_hostile.one_run(Simulated(), plan, ALONE, "fair", 1).figures
    assert alone[s7_hostile.P99] <= figures[s7_hostile.P99] and alone["b tokens/s"] == 0.0
