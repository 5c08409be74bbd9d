"""Compiling for a GPU that is not here.

XLA's CUDA compiler comes with JAX's CUDA plugin and needs no GPU: programs are lowered for a device that only compiles,
and what comes out says how much memory they take. JAX must not look for a GPU meanwhile: `without_gpu` first.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import topologies

from jaxserve.core.errors import CompilerMissing
from jaxserve.core.target import Target
from jaxserve.parallel.placement import TENSOR, Placement

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_REMEDY = 'make cuda, or pip install "jaxserve[cuda12]" (or cuda13): it needs no GPU'


def has_compiler() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    return any(importlib.util.find_spec(name) is not None for name in PLUGINS)


def without_gpu() -> None:
    """Keep JAX on the CPU in this process; to be called before anything has run."""
    jax.config.update("jax_platforms", "cpu")


class CompileOnlyDevice(Placement):
    """A GPU to lower programs for. CompilerMissing where the CUDA plugin is not installed, or cannot be used."""

    def __init__(self, target: Target) -> None:
        if not has_compiler():
            raise CompilerMissing(f"compiling for {target.name} needs JAX's CUDA plugin: {_REMEDY}")
        try:
            topology = topologies.get_topology_desc(platform="cuda", target_config=target.text, topology="1x1x1")
            mesh = topologies.make_mesh(topology, (1,), (TENSOR,))
        except Exception as error:
            raise CompilerMissing(f"JAX's CUDA plugin cannot compile for {target.name}: {error}") from error
        super().__init__(mesh)
        self._mesh = mesh.abstract_mesh

    @contextmanager
    def lowering(self) -> Iterator[None]:
        """Lower inside it: Pallas' Triton backend wants to know the device."""
        with jax.sharding.use_abstract_mesh(self._mesh):
            yield

    def shape(self, shape: tuple[int, ...], dtype: object) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.replicated)
