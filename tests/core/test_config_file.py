"""What is written is what is read."""

from jaxserve.core.config import EngineConfig
from jaxserve.core.config_file import to_toml


def test_it_comes_back(tmp_path) -> None:
    config = EngineConfig.from_settings(
        model='a "b" \\ ü', max_num_seqs=7, overlap=False, prefill_buckets=(64, 256), watermark=0.025, ttft_slo_s=0.5
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config, "two\nlines", {"max_num_seqs": "why"}))
    assert EngineConfig.from_toml(path) == config
    assert path.read_text().startswith("# two\n# lines\n") and "max_num_seqs = 7  # why" in path.read_text()


def test_defaults_are_left_out() -> None:
    assert to_toml(EngineConfig()) == "\n"
