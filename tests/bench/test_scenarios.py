"""The scenarios' own parts; the scenarios themselves are commands, which take minutes."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.scenarios import s1_batching, s2_chunks, s3_tenants, s7_hostile
from bench.scenarios.__main__ import main
from bench.scenarios.bars import least, most
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Simulated, _toml
from bench.shared.rates import duration_s
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.idle_settings import idle_settings
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sim.arrivals import Arrival


@pytest.mark.parametrize("real", [False, True])
def test_every_policy_has_a_bucket_for_every_step_and_no_setting_without_effect(real: bool, tmp_path: Path) -> None:
    chosen = s1_batching.policies(real) | s2_chunks.policies(real) | s2_chunks.sweep(real)
    common = s3_tenants.Plan(real).common
    chosen |= {name: common | settings for name, (settings, _) in s3_tenants.policies(real, str(tmp_path)).items()}
    chosen["s7"] = s7_hostile.Plan(real).common
    for settings in [common, *chosen.values()]:
        config = EngineConfig.from_settings(**settings)
        assert idle_settings(config) == []
        table = BucketTable.from_config(config.buckets, config.scheduler)
        chunk = min(config.scheduler.chunk_size or config.scheduler.max_num_batched_tokens, table.max_prefill_tokens)
        assert table.fit(config.scheduler.max_num_seqs, chunk).prefill_tokens >= chunk


def test_what_a_scenario_needs_is_said_before_it_runs(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    for options, words in (
        (["S5"], "S5 replays azure_2023_conv.jsonl and azure_2023_code.jsonl: give their folder, --traces DIR"),
        (["S4", f"--traces={tmp_path}", f"--out={tmp_path}"], "azure_2023_conv.jsonl: cannot be read"),
        (["S1", f"--out={tmp_path}/file"], "file is a file: give a folder"),
    ):
        assert main(options) == 2
        assert words in capsys.readouterr().err


def test_results_are_written_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    outcome = Outcome("S2", "made up", [Row({"load": "1", "policy": "off"}, 0, {"tokens/s": 2.0})], [])
    monkeypatch.setattr(s2_chunks, "run", lambda stage: outcome)
    assert main(["S2", f"--out={tmp_path}/new"]) == 0
    assert f"wrote {tmp_path}/new/s2_sim.json, {tmp_path}/new/s2_sim.md\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "s2_sim.json").read_text())["machine"]["cores"]


def test_a_stage_tells_how_full_its_steps_were() -> None:
    """Two rows for ten tokens, then one alone for ten more: three quarters of two slots."""
    run = Simulated().run(
        [Arrival(0.0, 4, 10), Arrival(0.0, 4, 20)], {"policy": "static", "batch_size": 2, "max_num_seqs": 2}
    )
    assert run.occupancy.busy_s == pytest.approx(duration_s(run.served))
    assert run.occupancy.row_s / run.occupancy.busy_s / 2 == pytest.approx(0.75, abs=0.01)


def test_a_run_may_abort_only_what_its_arrivals_say() -> None:
    one, two = Simulated().run([Arrival(0.0, 4, 10, abort_tokens=3), Arrival(0.0, 4, 10, n=1)], {}).served
    assert (len(one.token_s), one.failed, len(two.token_s), two.failed) == (3, "aborted", 10, "")


def test_tenants_survive_their_file(tmp_path: Path) -> None:
    tenants = Tenants([Tenant(name="chat", kv_max=0.5, ttft_slo_s=0.25), Tenant(name="batch", priority=1)])
    path = tmp_path / "tenants.toml"
    path.write_text(_toml(tenants))
    assert [dataclasses.asdict(t) for t in Tenants.from_toml(path)] == [dataclasses.asdict(t) for t in tenants]


def test_a_bar_is_met_by_the_median_and_nearly_by_every_seed() -> None:
    assert least("x", [1.0, 1.0, 0.91], 1.0).met and not least("x", [1.0, 1.0, 0.89], 1.0).met
    assert most("x", [1.0, 1.0, 1.1], 1.0).met and not most("x", [1.0, 1.0, 1.2], 1.0).met
    assert not least("x", [0.95, 0.95, 1.0], 1.0).met


def test_an_outcome_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [Row({"load": load, "policy": "a"}, seed, {"x": 1.0 + seed}) for load in "pq" for seed in (1, 2)]
    outcome = Outcome("S0", "nowhere", rows, [least("x", [2.0, 3.0], 2.0)], plot=("x",))
    outcome.draw(tmp_path / "s0.png")
    assert (tmp_path / "s0.png").stat().st_size > 5000
    assert "| p | a | 2.5 |" in outcome.markdown() and "met" in outcome.text()
