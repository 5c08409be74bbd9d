"""Settings without effect are named, and no others."""

from pathlib import Path
from typing import Any

import pytest

from jaxserve.core.config import EngineConfig, all_settings
from jaxserve.core.errors import ConfigError
from jaxserve.core.idle_settings import idle_settings
from jaxserve.core.tenants import Tenants
from jaxserve.sched.orderings import ORDERINGS
from jaxserve.sched.policies import POLICIES

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def said(**settings: Any) -> list[str]:
    return idle_settings(EngineConfig.from_settings(**settings))


@pytest.mark.parametrize("path", [CONFIGS / "cpu.toml", CONFIGS / "h200.toml"], ids=lambda path: path.name)
def test_nothing_in_the_shipped_files_is_idle(path: Path) -> None:
    assert idle_settings(EngineConfig.from_toml(path)) == idle_settings(EngineConfig()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "continuous", "chunk_size": 64}, "chunk_size = 64 has no effect with policy = 'continuous': it is"),
        ({"batch_size": 9}, "batch_size = 9 has no effect with policy = 'chunked': it is for 'static'"),
        ({"fair_input_weight": 2.0}, "has no effect with ordering = 'fcfs': it is for 'fair'"),
        ({"max_long_partial_prefills": 1}, "max_long_partial_prefills = 1 has no effect without long_prefill_token_th"),
        ({"offload_disk_dir": "/x"}, "offload_disk_dir = '/x' has no effect without offload_disk_bytes"),
        ({"offload_prefixes": False}, "offload_prefixes = False has no effect without offload_host_bytes"),
        ({"batch_max_lines": 3}, "batch_max_lines = 3 has no effect without batch_dir"),
        ({"kv_cache_bytes": 9, "num_blocks": 4}, "kv_cache_bytes = 9 has no effect: num_blocks = 4 replaces it"),
        ({"gpu_memory_utilization": 0.5, "num_blocks": 4}, "has no effect: num_blocks = 4 replaces it"),
        ({"gpu_memory_utilization": 0.5, "kv_cache_bytes": 9}, "has no effect: kv_cache_bytes = 9 replaces it"),
        ({"chunk_size": 999}, "chunk_size = 999 is more than max_num_batched_tokens = 512, which bounds it"),
        ({"policy": "dynamic", "max_batch_size": 65}, "max_batch_size = 65 is more than max_num_seqs = 64"),
        (
            {"admission": "slo"},
            "admission = 'slo' refuses only requests that bring an objective of their own: set ttft",
        ),
        ({"policy": "adaptive", "ttft_slo_s": 1.0}, "policy = 'adaptive' fits its steps only to"),
        ({"ordering": "slack", "tpot_slo_s": 1.0}, "ordering = 'slack' is like 'fcfs'"),
    ],
)
def test_what_has_no_effect_is_named_once(settings: dict[str, Any], words: str) -> None:
    [sentence] = said(**settings)
    assert words in sentence


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_size": 64},
        {"policy": "adaptive", "chunk_size": 64, "tpot_slo_s": 0.05},
        {"policy": "static", "batch_size": 9, "max_num_seqs": 9},
        {"ordering": "fair", "fair_input_weight": 2.0},
        {"max_long_partial_prefills": 1, "long_prefill_token_threshold": 64},
        {"offload_disk_bytes": 1 << 30, "offload_disk_dir": "/x"},
        {"batch_dir": "/x", "batch_max_lines": 3},
        {"num_blocks": 4},
        {"admission": "slo", "ordering": "slack", "ttft_slo_s": 1.0},
    ],
)
def test_what_has_an_effect_is_not(settings: dict[str, Any]) -> None:
    assert said(**settings) == []


def test_an_objective_may_be_a_tenants(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.a]\nttft_slo_s = 1\n")
    assert said(admission="slo", tenants=str(path)) == []
    assert len(said(policy="adaptive", tenants=str(path))) == 1
    assert said(tenants="nowhere.toml") == [], "a file that decides nothing here is not read"
    with pytest.raises(
        ConfigError, match=r"^nowhere\.toml: cannot be read \(No such file or directory\): see configs/tenants\.toml$"
    ):
        said(admission="slo", tenants="nowhere.toml")


def test_what_a_file_of_tenants_says_for_nobody(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.chat]\nweight = 2.0\n")
    batches = {"tenants": str(file), "batch_dir": "/b", "ordering": "fair"}
    config = EngineConfig.from_settings(tenants=str(file))
    found = idle_settings(config, Tenants.of(config.scheduler))
    assert found == [
        "tenants' weight has no effect on who is served with ordering = 'fcfs', and shares the queue and the cached "
        "prefixes only: 'fair' shares the service too"
    ]
    (sentence,) = said(**batches)
    assert sentence.startswith(f"batch_tenant = 'batch' is nobody in {file}: lines of batches run as 'default'")
    assert said(**batches, batch_tenant="chat") == [] == said(batch_dir="/b")


def test_what_settings_hang_on_are_settings_and_values_of_theirs() -> None:
    known = {setting.name for setting in all_settings()}
    values = {"policy": set(POLICIES), "ordering": set(ORDERINGS)}
    for setting in all_settings():
        others = {setting.needs, setting.at_most, *setting.replaces, *setting.only_with[:1]} - {None}
        assert others <= known - {setting.name}, setting.name
        if setting.only_with:
            assert set(setting.only_with[1:]) <= values[setting.only_with[0]], setting.name
