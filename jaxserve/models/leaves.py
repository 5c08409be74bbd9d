"""Parameters as data: each model declares its pytree of `Leaf`s, and everything else about weights derives from it.

    Leaf ──> shape and type (`Decoder.abstract_params`)       ──> memory, compiled programs
         ──> names of its axes (`Decoder.leaf_axes`)          ──> shardings
         ──> `fan_in` and `fill` (`params.random_params`)     ──> random initialisation
         ──> `sources` (`checkpoints.weights`, `hf_params`)   ──> Hugging Face names, and how each tensor is cut
         ──> `matmul_flops`, `weight_bytes`                   ──> costs

Axes have short names: V vocabulary, D model width, F feed-forward width, K KV heads, G query heads of each, H head dim,
E experts. A model declares its leaves with `Axes`, which knows the size of each.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

Index = tuple[slice | int, ...]
ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Source:
    """One stored tensor, and the part of a leaf that it fills.

    `leaf[index] = stored.reshape(split).transpose(turn)`; `shape` is the stored tensor's.
    """

    name: str
    shape: tuple[int, ...]
    index: Index
    split: tuple[int, ...]
    turn: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of the parameter pytree."""

    axes: tuple[str, ...]
    """The name of each axis."""
    shape: tuple[int, ...]
    fan_in: tuple[str, ...] = ()
    """The axes that one output sums over; none for a norm or a bias. Random values have a variance of one over their
    size. Of a table that rows are taken from: the axis that a row has."""
    sources: tuple[Source, ...] = ()
    """The tensors of a Hugging Face checkpoint that fill it. Each element is filled once."""
    fill: float = 0.0
    """The value of a leaf without `fan_in` in random parameters: 1 for the weight of a norm, 0 for a bias."""
    share: float = 1.0
    """The share of its elements that one token is multiplied with: 0 for a table that rows are only taken from, 1 / E
    for experts of which each token takes one."""

    @property
    def size(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    @property
    def inputs(self) -> int:
        """The number of values that one output sums over."""
        return prod(self.shape[self.axes.index(axis)] for axis in self.fan_in)

    @property
    def outputs(self) -> int:
        """The number of values that it gives for each token."""
        return self.size // self.inputs


class Axes(dict[str, int]):
    """The size of each axis by its name, and leaves declared over them. Names come in one string: "D K G+2 H"."""

    def shape(self, names: str) -> tuple[int, ...]:
        return tuple(self[name] for name in names.split())

    def matrix(self, names: str, fan_in: str, *sources: Source, share: float = 1.0) -> Leaf:
        return Leaf(tuple(names.split()), self.shape(names), tuple(fan_in.split()), sources, share=share)

    def norm(self, names: str, *sources: Source) -> Leaf:
        """The weight of a norm."""
        return Leaf(tuple(names.split()), self.shape(names), sources=sources, fill=1.0)

    def bias(self, names: str, *sources: Source) -> Leaf:
        return Leaf(tuple(names.split()), self.shape(names), sources=sources)

    def stored(self, name: str, names: str, index: Index = ()) -> Source:
        """A tensor that is stored with the axes of its leaf."""
        split = self.shape(names)
        return Source(name, split, index, split, tuple(range(len(split))))

    def vector(self, name: str, names: str, index: Index = ()) -> Source:
        """A vector that is cut into these axes: the bias of a linear layer."""
        split = self.shape(names)
        return Source(name, (prod(split),), index, split, tuple(range(len(split))))

    def linear(self, name: str, outputs: str, inputs: str, index: Index = ()) -> Source:
        """A linear layer, which is stored as [outputs, inputs]: both are cut into axes, and the inputs come first."""
        out, into = self.shape(outputs), self.shape(inputs)
        turn = (*range(len(out), len(out) + len(into)), *range(len(out)))
        return Source(name, (prod(out), prod(into)), index, (*out, *into), turn)


def weight_bytes(leaves: Any, dtype: Any) -> int:
    """Bytes of a pytree of `Leaf`s whose arrays have this type."""
    return sum(leaf.size for leaf in jax.tree.leaves(leaves)) * jnp.dtype(dtype).itemsize


def matmul_flops(leaves: Any) -> int:
    """FLOPs of one token in the matmuls with a pytree of `Leaf`s; attention itself is not among them."""
    return sum(round(2 * leaf.size * leaf.share) for leaf in jax.tree.leaves(leaves) if leaf.fan_in)


def activation_width(leaves: Any) -> int:
    """Values that the matmuls of a pytree of `Leaf`s read and write for one token."""
    return sum(leaf.inputs + leaf.outputs for leaf in jax.tree.leaves(leaves) if leaf.fan_in)
