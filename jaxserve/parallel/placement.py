"""Where each array of an engine lies. Everything that puts an array somewhere, or lowers a program, asks a Placement.

    parameters        by the names of their axes: K (KV heads), F (feed-forward), V (vocabulary) are split
    KV pages          [P, K, S, H], their scales [P, K], a block on the move [2 L, K, S, H]: by K
    everything else   whole on every device: block tables, tokens and sampling state of the slots, a step's input
    host              as KV pages, in host memory: pinned on a GPU, where copies then run beside the programs

On one device each of these is a `SingleDeviceSharding`, which JAX dispatches fastest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

TENSOR = "tensor"
"""The axis of a mesh over which heads and matrices are split."""
RULES: Mapping[str, str] = {"K": TENSOR, "F": TENSOR, "V": TENSOR}
"""Which axis of the mesh an axis of an array is split over; axes without a rule are not split."""
_PAGE_AXES = ("P", "K")
"""Leading axes of pages, of scales, and of a block on the move; the axes behind them are not split."""


class Placement:
    """One device, or a mesh and the rules by which it splits arrays.

    Args:
      where: a device, or a mesh. A rule for an axis that the mesh lacks, or has once, splits nothing.
      host_memory: the kind of the host's memory; by default "pinned_host" on a GPU, the device's own elsewhere.
    """

    def __init__(
        self, where: jax.Device | Mesh, rules: Mapping[str, str] = RULES, *, host_memory: str | None = None
    ) -> None:
        self.where, self._rules = where, dict(rules)
        self.device: jax.Device = where.devices.flat[0] if isinstance(where, Mesh) else where
        """The first device, which stands for all: its platform, and how much memory there is."""
        self._host_memory = host_memory or ("pinned_host" if self.device.platform == "gpu" else None)

    @classmethod
    def default(cls) -> "Placement":
        """JAX's default device."""
        (device,) = jax.device_put(np.float32(0)).devices()
        return cls(device)

    @classmethod
    def of(cls, array: Any) -> "Placement":
        """The device on which an array lies; JAX's default one if NumPy holds it, or several devices do."""
        devices = array.sharding.device_set if isinstance(array, jax.Array) else ()
        return cls(*devices) if len(devices) == 1 else cls.default()

    # --- shardings --------------------------------------------------------------------------------------------

    def params(self, axes: tuple[str, ...]) -> Sharding:
        """Of a parameter with axes of these names, as `Decoder.leaf_axes` gives them."""
        return self._split(axes)

    @property
    def pages(self) -> Sharding:
        return self._split(_PAGE_AXES)

    @property
    def replicated(self) -> Sharding:
        return self._split(())

    @property
    def host(self) -> Sharding:
        """Of blocks in host memory."""
        return self._split(_PAGE_AXES, self._host_memory)

    @property
    def step_input(self) -> Sharding | None:
        """Of what the host gives each step. None: the one device takes NumPy's arrays as they are."""
        return self.replicated if isinstance(self.where, Mesh) else None

    @property
    def step_blocks(self) -> Sharding | None:
        """Of KV blocks that are given to a step's programs; None as for `step_input`."""
        return self.pages if isinstance(self.where, Mesh) else None

    def _split(self, axes: tuple[str, ...], memory: str | None = None) -> Sharding:
        if not isinstance(self.where, Mesh):
            return SingleDeviceSharding(self.where, memory_kind=memory)
        sizes = self.where.shape
        split = [rule if sizes.get(rule := self._rules.get(axis, ""), 1) > 1 else None for axis in axes]
        spec = PartitionSpec(*split) if any(split) else PartitionSpec()
        return NamedSharding(self.where, spec, memory_kind=memory)

    # --- arrays -----------------------------------------------------------------------------------------------

    def put(self, leaf: Any, axes: tuple[str, ...]) -> jax.Array:
        """A parameter, put where it belongs."""
        return jax.device_put(leaf, self.params(axes))

    def make(self, build: Callable[[], Any]) -> Any:
        """The small arrays that `build` makes, whole on every device."""
        with jax.default_device(self.device):  # not on another one first
            return jax.device_put(build(), self.replicated)

    def abstract_params(self, params: Any, axes: Any) -> Any:
        """Shapes and shardings of `params`; `axes`: the same pytree with the names of each parameter's axes."""
        return jax.tree.map(
            lambda names, leaf: abstract(leaf, self.params(names)),
            axes,
            params,
            is_leaf=lambda node: isinstance(node, tuple),
        )

    # --- equality: programs lowered for equal placements are the same --------------------------------------------

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.where, self._host_memory, tuple(self._rules.items())


def abstract(tree: Any, sharding: Sharding | None) -> Any:
    """Shapes, types and this sharding in the place of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
