"""The tensors of a Hugging Face directory: one safetensors file, or several with an index.

Everything is checked against the files' headers when they are opened, before a byte of weights is read, and a tensor is
read only when it is asked for. Nothing here, or anywhere in jaxserve, opens a pickle.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxserve.core.errors import CheckpointError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class TensorFiles:
    """All tensors of a directory by name; a context manager. CheckpointError for anything that is not as it must be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._place: dict[str, tuple[Path, Any]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for path, listed in _shards(self.directory).items():
                handle = stack.enter_context(_opened(path))
                self._add(path, handle, listed)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self) -> Iterable[str]:
        return self._place.keys()

    def path(self, name: str) -> Path:
        """The file that holds the tensor; the directory when none does."""
        return self._place[name][0] if name in self._place else self.directory

    def dtype(self, name: str) -> str:
        """The stored type, as NumPy calls it."""
        path, handle = self._place[name]
        stored = handle.get_slice(name).get_dtype()
        if stored not in DTYPES:
            raise CheckpointError(path, f"tensor {name} has type {stored}", f"supported: {', '.join(DTYPES)}")
        return DTYPES[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._place[name][1].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor, copied out of the file into memory of its own."""
        path, handle = self._place[name]
        try:
            return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(path, f"tensor {name} cannot be read ({error})", "download the file again") from error

    def _add(self, path: Path, handle: Any, listed: set[str] | None) -> None:
        held = set(handle.keys())
        for name in sorted((listed or held) - held):
            raise CheckpointError(path, f"tensor {name} is not in it", f"{INDEX} says it is: download both again")
        for name in held if listed is None else listed:
            self._place[name] = (path, handle)


def _shards(directory: Path) -> Mapping[Path, set[str] | None]:
    """The files to open, with the tensors that the index expects in each (None: whatever is there)."""
    single = directory / "model.safetensors"
    if single.is_file():
        return {single: None}
    index = directory / INDEX
    if index.is_file():
        return _indexed(index)
    loose = sorted(directory.glob("*.safetensors"))
    if len(loose) == 1:
        return {loose[0]: None}
    _no_weights(directory, loose)


def _indexed(index: Path) -> Mapping[Path, set[str]]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards: dict[Path, set[str]] = {}
        for name, file in weight_map.items():
            shards.setdefault(index.parent / file, set()).add(name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = 'expected JSON with a "weight_map" from tensor names to file names'
        raise CheckpointError(index, f"not an index ({type(error).__name__}: {error})", expected) from error
    for path in shards:
        if path.parent != index.parent or path.suffix != ".safetensors":
            raise CheckpointError(index, f"it names {path.name}", "supported: safetensors files beside the index")
        if not path.is_file():
            raise CheckpointError(path, "there is no such file", f"{index.name} names it: download it")
    return shards


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "download the file again") from error


def _no_weights(directory: Path, loose: list[Path]) -> NoReturn:
    if loose:
        found = f"{len(loose)} safetensors files ({loose[0].name}, ...) and no {INDEX}"
        raise CheckpointError(directory, found, f"expected model.safetensors, or {INDEX} that names the files")
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            directory,
            f"weights only as a pickle ({pickles[0]}), which can run code when it is opened",
            "supported: safetensors; convert it where you trust it, with "
            "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST) of transformers",
        )
    raise CheckpointError(directory, "no weights", f"expected model.safetensors or {INDEX}")
