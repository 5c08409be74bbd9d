"""GPU targets are found by name or path, and read."""

from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.core.target import find_target, read_target


@pytest.mark.parametrize(
    ("name", "capability", "cores", "memory"),
    [("h200", (9, 0), 132, 150_000_000_000), ("a100", (8, 0), 108, 85 * 10**9)],
)
def test_the_targets_that_ship(name: str, capability: tuple[int, int], cores: int, memory: int) -> None:
    target = find_target(name)
    assert (target.name, target.capability, target.cores, target.memory) == (name, capability, cores, memory)
    assert target.shared_memory_block < target.shared_memory and target.registers == 65_536


def test_a_target_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txtpb"
    path.write_text(find_target("h200").text.replace("core_count: 132", "core_count: 78"))
    assert (find_target(path).name, find_target(path).cores) == ("mine", 78)


def test_an_unknown_target_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'tpu'.* a100, h200, or a \.txtpb file"):
        find_target("tpu")


def test_a_missing_field_is_named() -> None:
    text = find_target("h200").text
    for field in ("memory_bandwidth", "cuda_compute_capability"):
        with pytest.raises(ConfigError, match=f"bad: no {field}"):
            read_target("bad", text.replace(field, "other"))
