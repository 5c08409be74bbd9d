"""A batch's input: one JSON object a line, `{"custom_id", "method", "url", "body"}`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pydantic_core

from jaxserve.core.sampling import MAX_N

MAX_ERRORS = 20
MAX_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    """From 0, blank lines not counted."""
    custom_id: str
    body: dict[str, Any]

    @property
    def sequences(self) -> int:
        """How many it has the engine run: `n` of each prompt. Nobody has checked its body yet."""
        n, prompt = self.body.get("n"), self.body.get("prompt")
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return (len(cast(list[Any], prompt)) if several else 1) * (n if type(n) is int and 1 <= n <= MAX_N else 1)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that `find_errors` found good."""
    for number, _, text in _texts(path):
        entry = _json(text)
        yield Line(number, entry["custom_id"], entry["body"])


def find_errors(path: Path, endpoint: str, max_lines: int) -> tuple[int, list[dict[str, Any]]]:
    """(number of lines, what is wrong with the first ones that are wrong); lines are numbered from 1 for people."""
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    total = 0
    for number, place, text in _texts(path):
        total = number + 1
        if total > max_lines:
            return total, [_error("too_many_lines", f"at most {max_lines} lines (batch_max_lines)", None, None)]
        found = _check(text, endpoint, seen)
        if found is not None:
            errors.append(_error(*found, place))
            if len(errors) == MAX_ERRORS:
                return total, errors
    if total == 0:
        errors.append(_error("empty_file", "the input file has no lines", None, None))
    return total, errors


def _texts(path: Path) -> Iterator[tuple[int, int, bytes]]:
    number = 0
    with open(path, "rb") as file:
        place = 0
        while text := file.readline(MAX_LINE_BYTES + 1):
            place += 1
            if text.strip():
                yield number, place, text
                number += 1


def _check(text: bytes, endpoint: str, seen: set[str]) -> tuple[str, str, str | None] | None:
    """(code, message, param) of what is wrong with a line."""
    if len(text) > MAX_LINE_BYTES:
        return "line_too_long", f"a line has at most {MAX_LINE_BYTES} bytes", None
    try:
        entry = _json(text)
    except ValueError:
        return "invalid_json_line", "this line is not JSON", None
    if not isinstance(entry, dict):
        return "invalid_json_line", "this line is not a JSON object", None
    fields = cast(dict[str, Any], entry)
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return "missing_required_parameter", "custom_id must be a text", "custom_id"
    if custom_id in seen:
        return "duplicate_custom_id", f"custom_id {custom_id!r} occurs twice", "custom_id"
    seen.add(custom_id)
    if fields.get("method") != "POST":
        return "invalid_method", "method must be POST", "method"
    if fields.get("url") != endpoint:
        return "mismatched_url", f"url must be the batch's endpoint, {endpoint}", "url"
    if not isinstance(fields.get("body"), dict):
        return "missing_required_parameter", "body must be an object", "body"
    if cast(dict[str, Any], fields["body"]).get("stream"):
        return "invalid_body", "a line of a batch cannot stream: leave stream out", "body.stream"
    return None


def _json(text: bytes) -> Any:
    """As bodies are read: without NaN and half characters, which no answer could hold. Raises ValueError."""
    return pydantic_core.from_json(text, allow_inf_nan=False)


def _error(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
