"""Lines of a trace or a record: plain, compressed, from a pipe; and what is said of what is none."""

import gzip
import os
import threading
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.sim.lines import open_lines

TEXT = '{"a": "ä"}\n' * 3


def lines(path: Path) -> list[str]:
    with open_lines(path) as found:
        return list(found)


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_compressed_lines_are_unpacked_whatever_their_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (TEXT.encode(), gzip.compress(TEXT.encode()), b"\xef\xbb\xbf" + TEXT.encode()):
        path.write_bytes(content)
        assert lines(path) == TEXT.splitlines(keepends=True)
    path.write_bytes(b"")
    assert lines(path) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_is_read_once(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    content = gzip.compress(TEXT.encode()) if packed else TEXT.encode()
    writer = threading.Thread(target=path.write_bytes, args=[content])
    writer.start()
    assert lines(path) == TEXT.splitlines(keepends=True)
    writer.join()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TEXT.encode("utf-16"), "not a text file .*: expected JSON, one object a line, plain or gzipped"),
        (gzip.compress(TEXT.encode("utf-16")), "not a text file"),
        (gzip.compress(TEXT.encode())[:-9], "not a whole gzip file .*: compress it again"),
        (gzip.compress(TEXT.encode())[:-4] + b"0000", "not a whole gzip file"),
        (b"\x1f\x8b" + TEXT.encode(), "not a whole gzip file"),
        (gzip.compress(TEXT.encode())[:10] + b"\xff" * 99, "not a whole gzip file"),
    ],
    # By hand: gzip writes the time into its header, and the test's name would change from process to process.
    ids=["utf16", "packed-utf16", "cut", "wrong-length", "magic-then-text", "header-then-noise"],
)
def test_what_is_no_text_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        lines(path)


def test_what_is_not_there_is_said_with_what_makes_it(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "none: cannot be read .*: bake one"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words), open_lines(path, "bake one"):
            pass
