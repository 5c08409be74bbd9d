"""Parameters that come from no file: random ones, and a pytree that a user brings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.core.errors import ParamsMismatch
from jaxserve.models.config import ModelConfig
from jaxserve.models.contract import QuantArray
from jaxserve.models.decoder import Params
from jaxserve.models.leaves import Leaf
from jaxserve.models.registry import model_for

_DTYPES = ("float32", "bfloat16", "float16")


def random_params(config: ModelConfig, seed: int, dtype) -> Params:
    """Parameters that keep activations at unit scale; the same for the same seed, on every device."""
    leaves, tree = jax.tree.flatten(model_for(config).leaves(config))
    return jax.tree.unflatten(
        tree, [_random_leaf(np.random.default_rng((seed, i)), leaf, dtype) for i, leaf in enumerate(leaves)]
    )


def compute_dtype(params: Any) -> np.dtype:
    """The type of activations: the one that all of `params` stands for, a `QuantArray` by its `dtype`.

    Raises:
      ParamsMismatch: there are several.
    """
    found = {str(leaf.dtype) for leaf in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, QuantArray))}
    if len(found) != 1:
        raise ParamsMismatch(f"params: found the types {', '.join(sorted(found))}, expected one: cast them")
    return jnp.dtype(found.pop())


def check_params(params: Any, config: ModelConfig) -> None:
    """That a pytree of arrays is what `config` describes, all in one type that a model computes in.

    ParamsMismatch names the leaf, what was found and what is expected.
    """
    expected = _by_path(model_for(config).abstract_params(config, jnp.float32))
    found = _by_path(params)
    for path in sorted(expected.keys() - found.keys()):
        raise ParamsMismatch(f"params{path} is missing: expected an array of shape {expected[path].shape}")
    for path in sorted(found.keys() - expected.keys()):
        raise ParamsMismatch(f"params{path} is unexpected: {config.architecture} with this configuration has none")
    first = min(expected)
    dtype = getattr(found[first], "dtype", None)
    for path, leaf in found.items():
        shape = getattr(leaf, "shape", None)
        if shape != expected[path].shape:
            what = f"a {type(leaf).__name__}" if shape is None else f"shape {shape}"
            raise ParamsMismatch(f"params{path}: found {what}, expected an array of shape {expected[path].shape}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype != dtype:
            raise ParamsMismatch(
                f"params{path}: found {leaf.dtype}, expected one floating-point type for all (params{first} is {dtype})"
            )
        if str(leaf.dtype) not in _DTYPES:
            raise ParamsMismatch(f"params{path}: found {leaf.dtype}, expected one of {', '.join(_DTYPES)}: cast them")


def place_params(params: Any, like: Any) -> Params:
    """`params` in the containers and on the devices of `like`. What NumPy holds is copied: its owner may write to it.

    ParamsMismatch where a shape or type is another: compiled programs would not take it.
    """
    found = _by_path(params)

    def place(path: Any, model: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        leaf = found[name]
        if leaf.shape != model.shape or leaf.dtype != model.dtype:
            raise ParamsMismatch(f"params{name}: found {leaf.shape} {leaf.dtype}, expected {model.shape} {model.dtype}")
        if not isinstance(leaf, jax.Array):
            leaf = np.array(leaf)
        return jax.device_put(leaf, model.sharding)

    return jax.tree_util.tree_map_with_path(place, like)


def _random_leaf(rng: np.random.Generator, leaf: Leaf, dtype: Any) -> jax.Array:
    """Drawn by NumPy: JAX's generators take seconds to compile, once for each shape."""
    if not leaf.fan_in:
        return jnp.full(leaf.shape, leaf.fill, dtype)
    values = rng.random(leaf.shape, dtype=np.float32)
    values -= 0.5
    values *= (12 / leaf.inputs) ** 0.5  # a uniform variable's variance is a twelfth of its width squared
    return jax.device_put(values).astype(dtype)


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
