"""Parameters from arrays that have Hugging Face's names, without a file: what a trainer holds, say.

    params = params_from_hf({"model.embed_tokens.weight": ..., ...}, config)        # LLM(params=params, ...)
    llm.update_params(jax.jit(params_from_hf, static_argnums=1)(tensors, config))   # after each training step

`checkpoints.weights` does the same with files, one tensor at a time.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.core.errors import ParamsMismatch
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Params
from jaxserve.models.leaves import Leaf, Source
from jaxserve.models.registry import model_for


def params_from_hf(tensors: Mapping[str, Any], config: ModelConfig) -> Params:
    """The parameters that `tensors` are, fused as the model's file declares them. It can be traced: jit it.

    Names and shapes are those of the model's `state_dict`: a linear layer is [out, in]; the kernel of a Dense layer of
    flax is [in, out], so give its transpose. Types stay as they are.

    Raises:
      ParamsMismatch: a tensor is missing, or not of the model, or has another shape; types differ within a leaf.
    """
    model = model_for(config)
    leaves = model.leaves(config)
    sources = [source for leaf in jax.tree.leaves(leaves) for source in leaf.sources]
    for name in sorted(tensors.keys() - {source.name for source in sources}):
        if not model.ignores(config, name):
            raise ParamsMismatch(f"{name} is unexpected: {config.architecture} with this configuration has none")
    for source in sources:
        _check(tensors, source)
    return jax.tree.map(lambda leaf: _fused(tensors, leaf), leaves)


def _check(tensors: Mapping[str, Any], source: Source) -> None:
    if source.name not in tensors:
        raise ParamsMismatch(f"{source.name} is missing: expected an array of shape {source.shape}")
    shape = getattr(tensors[source.name], "shape", None)
    if shape != source.shape:
        turned = ": give its transpose" if shape == source.shape[::-1] else ""
        raise ParamsMismatch(f"{source.name}: found shape {shape}, expected {source.shape}{turned}")


def _fused(tensors: Mapping[str, Any], leaf: Leaf) -> jax.Array:
    parts = [jnp.asarray(tensors[source.name]).reshape(source.split).transpose(source.turn) for source in leaf.sources]
    if len({part.dtype for part in parts}) > 1:
        found = ", ".join(f"{source.name} {part.dtype}" for source, part in zip(leaf.sources, parts, strict=True))
        raise ParamsMismatch(f"types differ: {found}: cast them to one")
    if len(parts) == 1:
        return parts[0]
    out = jnp.zeros(leaf.shape, parts[0].dtype)
    for source, part in zip(leaf.sources, parts, strict=True):
        out = out.at[source.index].set(part)
    return out
