"""Small files that people write, read whole; one that cannot be is refused with what would do instead."""

import json
import tomllib
from pathlib import Path
from typing import Any, cast

from jaxserve.core.errors import ConfigError


def read_toml(path: str | Path, remedy: str) -> dict[str, Any]:
    """Raises ConfigError: it cannot be read, or is not TOML; `remedy` says what to give."""
    try:
        return tomllib.loads(_read(path, remedy))
    except ConfigError:  # a ValueError, too
        raise
    except ValueError as error:  # UnicodeDecodeError is one
        raise ConfigError(f"{path}: not TOML ({error}): {remedy}") from error


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """The object in a file; of any other JSON value nothing. Raises ConfigError: it cannot be read, or is not JSON."""
    try:
        stored: object = json.loads(_read(path, remedy))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}): {remedy}") from error
    return cast(dict[str, Any], stored) if isinstance(stored, dict) else {}


def _read(path: str | Path, remedy: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): {remedy}") from error
