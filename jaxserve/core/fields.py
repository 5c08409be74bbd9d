"""Typed reading of a JSON object whose errors name the file, the key, what was found and what is accepted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast, overload

from jaxserve.core.errors import CheckpointError

_REQUIRED: Any = object()


class Fields:
    """The object at `path`. A key that is absent or null takes the default; without a default it must be there."""

    def __init__(self, mapping: Mapping[str, Any], path: object, prefix: str = "") -> None:
        self._mapping, self.path, self._prefix = mapping, path, prefix

    def fail(self, found: str, supported: str) -> NoReturn:
        raise CheckpointError(self.path, found, supported)

    def get(self, key: str, default: Any = None) -> Any:
        value = self._mapping.get(key)
        return default if value is None else value

    def keys(self) -> set[str]:
        """Keys that hold something."""
        return {key for key, value in self._mapping.items() if value is not None}

    @overload
    def integer(self, key: str, default: None) -> int | None: ...
    @overload
    def integer(self, key: str, default: int = ...) -> int: ...
    def integer(self, key: str, default: int | None = _REQUIRED) -> int | None:
        return cast("int | None", self._typed(key, default, (int,), "a whole number"))

    def number(self, key: str, default: float = _REQUIRED) -> float:
        return float(self._typed(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        return bool(self._typed(key, default, (bool,), "true or false"))

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, a list of ids, or nothing."""
        value = self.get(key, [])
        ids = cast("list[Any]", value if isinstance(value, list) else [value])
        if not all(type(item) is int for item in ids):
            self.fail(f"{self._prefix}{key} is {value!r}", "supported: a token id or a list of them")
        return tuple(ids)

    def names(self, key: str) -> list[str] | None:
        """A list of names; None where there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[Any]", value)):
            self.fail(f"{self._prefix}{key} is {value!r}", "supported: a list of names")
        return cast("list[str]", value)

    def section(self, key: str) -> "Fields | None":
        """The object under `key`; None where there is none or it is empty."""
        value = self.get(key)
        if not isinstance(value, Mapping | None):
            self.fail(f"{self._prefix}{key} is {value!r}", "supported: an object")
        return Fields(cast("Mapping[str, Any]", value), self.path, f"{self._prefix}{key}.") if value else None

    def _typed(self, key: str, default: Any, kinds: Sequence[type], expected: str) -> Any:
        value = self.get(key, default)
        if value is _REQUIRED:
            self.fail(f"{self._prefix}{key} is missing", f"expected {expected}")
        if value is not default and type(value) not in kinds:
            self.fail(f"{self._prefix}{key} is {value!r}", f"expected {expected}")
        return value


def read_json(path: Path) -> Mapping[str, Any]:
    """A file's JSON object. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror})", "expected a Hugging Face directory"
        ) from error
    except ValueError as error:
        raise CheckpointError(path, f"not JSON ({error})", "download the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a {type(content).__name__}", "expected a JSON object")
    return cast("Mapping[str, Any]", content)
