"""Settings: one name everywhere, wrong ones refused with what is accepted."""

from pathlib import Path

import pytest

from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig, all_settings
from jaxserve.core.errors import ConfigError
from jaxserve.core.settings_page import page

ROOT = Path(__file__).parent.parent.parent


CONFIGS = sorted(set((ROOT / "configs").glob("*.toml")) - {ROOT / "configs" / "tenants.toml"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_load(path: Path) -> None:
    config = EngineConfig.from_toml(path)
    table = BucketTable.from_config(config.buckets, config.scheduler)
    assert table.decode[-1] >= config.scheduler.max_num_seqs


def test_names_are_unique_and_documented() -> None:
    names = [setting.name for setting in all_settings()]
    assert len(set(names)) == len(names)
    assert all(setting.doc for setting in all_settings())
    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run python -m jaxserve.core.settings_page"


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[scheduler]\nmax_num_seqs = 5\n[buckets]\ndecode_buckets = [1, 8]\n")
    config = EngineConfig.from_toml(file, max_num_seqs=7)
    assert config.scheduler.max_num_seqs == 7 and config.buckets.decode_buckets == (1, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scheduler]\nmax_num_sequences = 5", "max_num_sequences"),
        ("[schedule]\nx = 1", "schedule"),
        ("max_num_seqs = 3", "max_num_seqs"),
        ("[scheduler]\nmax_num_seqs = 'five'", "int"),
        ("[scheduler]\nmax_num_seqs = true", "int"),
        ("[scheduler]\nmax_num_seqs = 0", "positive"),
        ("[cache]\nblock_size = 33", "128"),
        ("[cache]\ngpu_memory_utilization = 1.5", "share"),
        ("[buckets]\ndecode_buckets = [8, 4]", "growing"),
        ("[buckets]\ndecode_buckets = 'all'", "list"),
        ("[runtime]\nwarmup = 'soon'", "progressive"),
        ("[scheduler", "TOML"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        EngineConfig.from_toml(file)


def test_a_missing_file_says_so() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        EngineConfig.from_toml("/no/such/file.toml")


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'max_num_seq' \(did you mean max_num_seqs\?\): docs/settings.md has them all"
    ):
        EngineConfig.from_settings(max_num_seq=3)
    with pytest.raises(ConfigError, match=r"unknown setting 'zzzz': docs/settings.md"):
        EngineConfig.from_settings(zzzz=3)


def test_buckets_must_hold_the_limits() -> None:
    config = EngineConfig.from_settings(max_num_seqs=64, decode_buckets=(8,))
    with pytest.raises(ConfigError, match="max_num_seqs"):
        BucketTable.from_config(config.buckets, config.scheduler)
