"""Strict everywhere: the CPU, no silent promotion of types or ranks; compiled programs are shared by a session.

`make test` runs several processes. A group of tests stays in one of them: a file, or a folder whose files share an
engine that is dear to build. The longest groups begin first, so that no process ends long after the others.
"""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

TESTS = Path(__file__).parent
SHARING = ("equivalence", "server")
LONGEST = (
    "equivalence", "bench/test_gpu.py", "kernels_pallas/test_triton.py", "bench/test_compare.py",
    "tune/test_tune.py", "kernels_pallas/test_reference.py", "server", "kernels_pallas/test_mosaic_gpu.py",
    "bench/test_soak.py", "models/test_oracles_in_the_engine.py", "test_cli.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("loadgroup", False):  # set in the processes that run tests
        return
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    groups = {item: group_of(item.path) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: ranks.get(groups[item], len(ranks)))


def group_of(path: Path) -> str:
    inside = path.relative_to(TESTS)
    return inside.parts[0] if inside.parts[0] in SHARING else inside.as_posix()


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of compiled programs for the whole session: equal shapes are compiled once."""
    return os.environ.get("JAXSERVE_TEST_CACHE") or str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return TESTS / "fixtures"
