"""Decisions as JSON: what `GET /debug/decisions` answers, and what `jaxserve timeline --record` reads back."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from jaxserve.core.decisions import Change, Chunk, Decision, Part, Preemption, Reason, Waited
from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Bucket


def to_json(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    return [asdict(decision) for decision in decisions]


def from_json(stored: Any) -> list[Decision]:
    """Raises ConfigError for what is no list of decisions."""
    if not isinstance(stored, list):
        raise ConfigError("no record of decisions: expected a list: save the answer of GET /debug/decisions")
    try:
        return [_decision(dict(entry)) for entry in cast(list[Any], stored)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"no record of decisions ({error!r}): save the answer of GET /debug/decisions") from error


def load(path: str | Path) -> list[Decision]:
    """Raises ConfigError for a file that holds no record."""
    try:
        return from_json(json.loads(Path(path).read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the file that holds the record") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: not JSON ({error}): save the answer of GET /debug/decisions (what `jaxserve serve --record` "
            "writes is for `jaxserve replay`)"
        ) from error


def _decision(entry: dict[str, Any]) -> Decision:
    entry["bucket"] = Bucket(*entry["bucket"])
    entry["chunks"] = tuple(Chunk(*chunk) for chunk in entry["chunks"])
    entry["admitted"] = tuple(entry["admitted"])
    entry["displaced"] = tuple(Preemption(*displaced) for displaced in entry["displaced"])
    entry["waited"] = tuple(Waited(*waited) for waited in entry.get("waited", ()))
    entry["held"] = {name: Reason(reason) for name, reason in entry["held"].items()}
    entry["waiting"] = {Reason(reason): count for reason, count in entry["waiting"].items()}
    entry["others"] = Reason(entry["others"])
    entry["changes"] = [_change(*change) for change in entry["changes"]]
    return Decision(**entry)


def _change(at_s: float, sequence: str, part: list[Any]) -> Change:
    return Change(at_s, sequence, Part(part[0], None if part[1] is None else Reason(part[1])))
