"""Strict everywhere: the CPU, no silent promotion of types or ranks; compiled programs are shared by a session."""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of compiled programs for the whole session: equal shapes are compiled once."""
    return os.environ.get("JAXSERVE_TEST_CACHE") or str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return Path(__file__).parent / "fixtures"
