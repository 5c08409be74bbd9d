"""Weights from a Hugging Face directory, a hub id, or a checkpoint made by `jaxserve convert`.

Leaves are built one after the other: the tensors of a leaf are read one at a time, put into place in the wanted type,
and the leaf goes to the device before the next is begun. Besides the model itself, host memory never holds more than
one leaf and one stored tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxserve.checkpoints import hub, orbax
from jaxserve.checkpoints.hf_config import config_from_directory
from jaxserve.checkpoints.safetensors_files import TensorFiles
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Params
from jaxserve.models.leaves import Leaf
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_BLOCK = 64  # columns copied at a time: a transposing copy is twice as fast when its source stays in the cache

Place = Callable[[np.ndarray, tuple[str, ...]], Any]
"""Puts a finished leaf, whose axes have these names, on the device."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`directory` also has the tokenizer's files."""

    config: ModelConfig
    params: Params
    directory: Path


def load(
    source: str | Path,
    dtype: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    placement: Placement | None = None,
) -> Checkpoint:
    """Load a model onto the devices of `placement`; None: the default device.

    `source` is a directory (Hugging Face, or made by `convert`) or a hub id such as `Qwen/Qwen3-0.6B`; `revision`,
    `cache_dir` and `token` are for the hub. `dtype` is "float32", "bfloat16" or "float16"; by default float32 on the
    CPU and bfloat16 elsewhere. CheckpointError or UnsupportedArchitecture name the file and what is wrong with it.
    """
    wanted = parse_dtype(dtype)
    directory = hub.resolve(source, revision=revision, cache_dir=cache_dir, token=token)
    config, placement = config_from_directory(directory), placement or Placement.default()
    if orbax.is_converted(directory):
        return Checkpoint(config, orbax.restore(directory, config, wanted, placement), directory)
    with TensorFiles(directory) as files:
        return Checkpoint(config, load_params(files, config, wanted, placement.put), directory)


def convert(source: str | Path, destination: str | Path) -> None:
    """Write a Hugging Face model as an Orbax checkpoint that `load` reads, in the type of its weights: float32 if they
    have several, so that no value changes.

    CheckpointError as from `load`, and if `destination` exists or cannot be created.
    """
    target = Path(destination).expanduser()
    orbax.check_destination(target)
    directory = hub.resolve(source)
    if orbax.is_converted(directory):
        raise CheckpointError(directory, "it is converted already", "give a Hugging Face directory or a hub id")
    config = config_from_directory(directory)
    with TensorFiles(directory) as files:
        params = load_params(files, config, _widest(files, config))
    orbax.save(params, directory, target)


def parse_dtype(dtype: str | None) -> np.dtype:
    """The type of weights: by name, or the default of the device."""
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype = {dtype!r} cannot work: give one of {', '.join(_DTYPES)}")
    return np.dtype(_DTYPES[dtype])


def load_params(files: TensorFiles, config: ModelConfig, dtype: np.dtype, place: Place | None = None) -> Params:
    """The parameters of `config` out of `files`; every name, shape and type is checked before the first is read."""
    leaves = model_for(config).leaves(config)
    _check(files, config, jax.tree.leaves(leaves))
    put = place or (lambda leaf, axes: jax.device_put(leaf))
    return jax.tree.map(lambda leaf: put(_build(files, leaf, dtype), leaf.axes), leaves)


def _widest(files: TensorFiles, config: ModelConfig) -> np.dtype:
    """The one type that holds every tensor exactly: the stored one, float32 where there are several."""
    model = model_for(config)
    stored = {files.dtype(name) for name in files.names() if not model.ignores(config, name)}
    return parse_dtype(stored.pop() if len(stored) == 1 else "float32")


def _build(files: TensorFiles, leaf: Leaf, dtype: np.dtype) -> np.ndarray:
    out = np.empty(leaf.shape, dtype)
    for source in leaf.sources:
        stored = files.read(source.name).reshape(source.split).transpose(source.turn)
        part = out[source.index]
        step = part.shape[-1] if stored.flags.c_contiguous else _BLOCK
        for start in range(0, part.shape[-1], step):
            part[..., start : start + step] = stored[..., start : start + step]
    return out


def _check(files: TensorFiles, config: ModelConfig, leaves: list[Leaf]) -> None:
    names = set(files.names())
    expected = {source.name: source.shape for leaf in leaves for source in leaf.sources}
    missing = [name for name in expected if name not in names]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        wanted = f"expected shape {list(expected[missing[0]])}"
        if missing == ["lm_head.weight"]:
            wanted += ", or tie_word_embeddings true in config.json where the embeddings are the head as well"
        raise CheckpointError(files.directory, f"tensor {missing[0]} is missing{more}", wanted)
    model = model_for(config)
    for name in sorted(names - expected.keys()):
        if not model.ignores(config, name):
            raise CheckpointError(
                files.path(name), f"unexpected tensor {name}", f"{config.architecture} with this config.json has none"
            )
    for name, shape in expected.items():
        files.dtype(name)
        if files.shape(name) != shape:
            raise CheckpointError(
                files.path(name), f"tensor {name} has shape {list(files.shape(name))}", f"expected {list(shape)}"
            )
