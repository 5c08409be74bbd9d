"""Pallas' Mosaic GPU interpreter in tests: races are asked for, and the older JAX is kept from recompiling."""

from collections.abc import Iterator

import jax
import pytest
from jax._src import core
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

NEWEST = jax.version.__version_info__ >= (0, 11)
"""From JAX 0.11 the race detector knows shared memory's fences and waits for stores; before, it finds fewer races."""


def races_found() -> bool:
    """In the kernel that ran last."""
    return interpret_pallas_call.get_races().races_found


def _evaluate(jaxpr, consts, *args) -> None:
    core.eval_jaxpr(jaxpr, consts, *args)


def _run_jaxpr(jaxpr, consts, *args) -> None:
    jax.jit(_evaluate, static_argnums=0).trace(jaxpr, consts, *args).lower().compile()(consts, *args)


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX 0.10 compiles a kernel of several warpgroups anew for every program of its grid; later ones do it once."""
    if not NEWEST:
        monkeypatch.setattr(thread_map, "_run_jaxpr", _run_jaxpr)
    yield
    interpret_pallas_call.reset_gpu_interpret_mode_state()
