"""Values of flags. Where results go is checked when the flags are read, before the work."""

import argparse
from collections.abc import Callable
from pathlib import Path

from jaxserve.commands.results import expect_file, expect_folder
from jaxserve.core.errors import ConfigError


def words(text: str) -> list[str]:
    """ "a,b" as ["a", "b"]."""
    return text.split(",")


def file_to_write(text: str) -> Path:
    """A flag's value: a file, whose folder is made."""
    return _place(text, expect_file)


def folder_to_write(text: str) -> Path:
    """A flag's value: a folder, which is made."""
    return _place(text, expect_folder)


def _place(text: str, expect: Callable[[Path], None]) -> Path:
    path = Path(text)
    try:
        expect(path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
