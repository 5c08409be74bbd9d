"""Where results go: looked at before the work, so that an hour of it does not end at a folder that is not there."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from jaxserve.core.errors import ConfigError


def expect_file(path: Path | None) -> None:
    """Make the folder that a result will lie in, unless the file is there already (or is `/dev/stdout`, say).

    Raises:
      ConfigError: nothing can be written there.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give a file to write")
    if not path.exists():
        expect_folder(path.parent)
    elif not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written over: give another file")


def expect_folder(path: Path | None) -> None:
    """Make a folder for results. Raises ConfigError if that is not possible, or nothing can be written in it."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{path} is a file: give a folder to write in") from error
    except OSError as error:
        raise ConfigError(f"the folder {path} cannot be made ({error.strerror}): give another place") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written in {path}: give another place")


@contextmanager
def written(path: Path) -> Generator[None]:
    """Around what writes there. Raises ConfigError when the disk will not take it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}): make room, or give another file") from error


def write_text(path: Path, text: str) -> None:
    """Raises ConfigError when the disk will not take it."""
    with written(path):
        path.write_text(text)


def write_private(path: Path, text: str) -> None:
    """The same, for its owner's eyes."""
    with written(path), open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)  # where it existed, the opener changes nothing
        file.write(text)
