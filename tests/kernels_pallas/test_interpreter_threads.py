"""The interpreter gets as many threads of XLA's CPU client as its warpgroups need, or says that it has too few."""

import os
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import pytest

from kernels_pallas.interpreter_threads import INTERPRETER_THREADS, make_room_for_interpreter
from kernels_pallas.paged_attention.mosaic_gpu import launch
from tests.test_floors import loaded_after


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by /proc")
def test_the_client_has_the_threads() -> None:
    (jnp.ones((256, 256)) @ jnp.ones((256, 256))).block_until_ready()
    names = Counter(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))
    assert names["tf_XLAEigen"] >= INTERPRETER_THREADS


def test_too_few_threads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_NPROC", "2")
    with pytest.warns(UserWarning, match="PJRT_NPROC=8"):
        launch._interpreter()


def test_it_can_be_asked_for_before_jax_is_loaded() -> None:
    assert "jax" not in loaded_after("import kernels_pallas.interpreter_threads")


def test_room_is_made_but_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    make_room_for_interpreter()
    launch._interpreter()  # without a warning
    monkeypatch.setenv("PJRT_NPROC", "16")
    make_room_for_interpreter()
    assert os.environ["PJRT_NPROC"] == "16"
