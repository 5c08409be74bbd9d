"""Checkpoints in Orbax's format: weights already fused, ready to be read in parallel and straight onto a mesh.

`convert` writes a directory with the configuration, the tokenizer's files, and the parameters under `params/`. The
parameters are those of `Decoder.leaves`, in the type in which the source had them.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from jaxserve.checkpoints.safetensors_files import INDEX
from jaxserve.core.errors import CheckpointError, ParamsMismatch
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Params
from jaxserve.models.params import check_params
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement

_PARAMS = "params"
_REQUIRED = ("_METADATA", "manifest.ocdbt")
_AGAIN = "run jaxserve convert again"
_CREATABLE = "give a directory that convert can create"
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "tokenizer*", "LICENSE*", "USE_POLICY*")


def is_converted(directory: Path) -> bool:
    """Whether `convert` made it."""
    return (directory / _PARAMS).is_dir()


def check_destination(destination: Path) -> None:
    """CheckpointError unless a folder can be made there: asked before minutes go into the reading of weights."""
    for place in (destination, *destination.parents):
        if os.path.lexists(place):
            break
    if place == destination:
        raise CheckpointError(destination, "it exists already", _CREATABLE)
    if not place.is_dir():
        raise CheckpointError(destination, f"{place} is not a directory", _CREATABLE)
    if not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(destination, f"{place} cannot be written to", _CREATABLE)


def save(params: Params, source: Path, destination: Path) -> None:
    """Write `params`, and beside them the files of `source` that are no weights. `destination` appears when whole."""
    try:
        _save(params, source, destination)
    except OSError as error:
        raise CheckpointError(destination, f"cannot be written ({error.strerror or error})", _CREATABLE) from error


def _save(params: Params, source: Path, destination: Path) -> None:
    import orbax.checkpoint as ocp  # seconds to import

    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.name != INDEX:
                shutil.copy2(path, partial / path.name)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial.resolve() / _PARAMS, params)
    partial.rename(destination)


def restore(directory: Path, config: ModelConfig, dtype: np.dtype, placement: Placement) -> Params:
    """The parameters in `dtype`, each device reading its part."""
    import orbax.checkpoint as ocp

    model = model_for(config)
    expected = placement.abstract_params(model.abstract_params(config, dtype), model.leaf_axes(config))
    path = directory.resolve() / _PARAMS
    for name in _REQUIRED:
        if not (path / name).is_file():
            raise CheckpointError(path, f"not a whole checkpoint ({name} is missing)", _AGAIN)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            check_params(checkpointer.metadata(path).item_metadata.tree, config)
            return checkpointer.restore(path, expected)
    except ParamsMismatch as error:
        raise CheckpointError(path, str(error), "config.json and parameters must be of one conversion") from error
    except Exception as error:  # TensorStore raises bare ones for a damaged file
        reason = str(error).strip().partition("\n")[0][:300]
        raise CheckpointError(path, f"not a whole checkpoint ({reason})", _AGAIN) from error
