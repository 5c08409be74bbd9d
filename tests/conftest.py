"""Strict everywhere: the CPU, no silent promotion of types or ranks; compiled programs are shared by a session.

`make test` runs several processes. A group of tests stays in one of them: a file, or files that share an engine that is
dear to build. The longest groups begin first, so that no process ends long after the others.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from kernels_pallas.interpreter_threads import make_room_for_interpreter

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
make_room_for_interpreter()

# A job in a shell's background ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes no example wrong.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

TESTS = Path(__file__).parent
SHARING = {"equivalence": "equivalence", "server": "server", "deploy": "server", "test_cli.py": "server"}
LONGEST = (
    "server", "equivalence", "kernels_pallas/test_mosaic_gpu.py", "bench/test_tuning.py", "bench/test_gpu.py",
    "kernels_pallas/test_triton.py", "bench/test_soak.py", "kernels_pallas/test_reference.py", "bench/test_compare.py",
    "models/test_oracles_in_the_engine.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(group_of(item.nodeid), len(ranks)))


def group_of(nodeid: str) -> str:
    """`tests/server/test_x.py::test_y` is of the group "server", `tests/sim/test_x.py::test_y` of "sim/test_x.py"."""
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return SHARING.get(file.partition("/")[0], file)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One folder of compiled programs for the whole session, and in this process not even a folder: equal shapes are
    traced and compiled once."""
    from jaxserve.runtime.runner import ModelRunner
    from tests.shared_programs import SharedLowering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRunner, "lowering", SharedLowering)
        yield os.environ.get("JAXSERVE_TEST_CACHE") or str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return TESTS / "fixtures"
