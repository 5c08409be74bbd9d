"""Traces and records are lines of JSON, as they are or compressed by gzip."""

import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from jaxserve.core.errors import ConfigError

_GZIP = b"\x1f\x8b"


@contextmanager
def open_lines(path: str | Path, made_by: str = "give the path of a trace") -> Generator[TextIO]:
    """The lines of a text file, unpacked where its first bytes are gzip's. `made_by`: what helps who has no such file.

    Raises:
      ConfigError: it cannot be read, then or on the way.
    """
    try:
        with open(path, "rb") as file:
            packed = file.peek(len(_GZIP)).startswith(_GZIP)  # a pipe cannot be read twice
            with io.TextIOWrapper(gzip.open(file) if packed else file, encoding="utf-8-sig") as lines:
                yield lines
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a text file ({error.reason}): expected JSON, one object a line, plain or gzipped"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: not a whole gzip file ({error}): compress it again") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): {made_by}") from error
