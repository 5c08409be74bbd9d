"""Results as JSON files, the same for every benchmark: what ran, on what, with which seeds, and the rows of the table.

    {"bench": "chunks", "date": .., "machine": {..}, "arguments": {..}, "seeds": [..], "cost_model": null | "..",
     "rows": [{"name": "chunk 64", "ttft_p99_s": ..}, ..]}

`--against FILE` shows two such files side by side, row by row.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.shared.machine import describe
from jaxserve.commands.results import expect_file, write_text
from jaxserve.commands.tables import table
from jaxserve.core.errors import ConfigError

PACKAGES = ("jaxserve", "jax", "jaxlib", "numpy")
_RESULTS = ("date", "json", "png", "against")
"""Arguments, and when, that change no figure."""
Row = dict[str, Any]
"""A name, and figures by their names: `_s` seconds, `_per_s` rates; None where there is none."""


def record(
    bench: str, given: argparse.Namespace, rows: Sequence[Row], *, seeds: Sequence[int], cost_model: str | None = None
) -> dict[str, Any]:
    """`cost_model`: where simulated step times come from; None: this machine ran it."""
    return {
        "bench": bench,
        "machine": describe(device=cost_model is None and "jax" in sys.modules) | {"system": platform.platform()},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "arguments": {name: _plain(value) for name, value in vars(given).items() if _tells(name, value)},
        "seeds": list(seeds),
        "cost_model": cost_model,
        "rows": list(rows),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    expect_file(path)
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


def read(path: Path, bench: str) -> dict[str, Any]:
    """Raises ConfigError for what is no result of that benchmark."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(stored, dict) or stored.get("bench") != bench:
        raise ConfigError(f"{path}: no result of bench.{bench}: give a file that its --json wrote")
    return stored


def origin(result: dict[str, Any]) -> str:
    """Where the figures come from: a cost model, or a machine."""
    machine = result["machine"]
    return result["cost_model"] or f"{machine['cpu']}, {machine['cores']} cores"


def show(result: dict[str, Any], columns: Sequence[tuple[str, str]]) -> str:
    """The rows as a table. `columns`: (heading, figure's name); a heading that ends in " ms" shows seconds as ms.

    Simulated rows say where their step times come from."""
    rows = table(
        [heading for heading, _ in columns],
        [[_shown(heading, row.get(name)) for heading, name in columns] for row in result["rows"]],
    )
    return rows + (f"\n\nsimulated; step times: {result['cost_model']}" if result["cost_model"] else "")


def against(new: dict[str, Any], old: dict[str, Any], columns: Sequence[tuple[str, str]]) -> str:
    """Both results' figures of the rows that both have, and new over old."""
    older = {row["name"]: row for row in old["rows"]}
    figures = [(heading, name) for heading, name in columns if name != "name"]
    rows: list[list[object]] = []
    for row in new["rows"]:
        before = older.get(row["name"])
        for heading, name in figures:
            a, b = row.get(name), before and before.get(name)
            if isinstance(a, int | float) and isinstance(b, int | float):
                rows.append([row["name"], heading, _shown(heading, a), _shown(heading, b), a / b if b else None])
    names = [row["name"] for row in new["rows"]]
    text = table(["row", "figure", "this", "that", "this / that"], rows)
    for where, alone in (
        ("only this", [name for name in names if name not in older]),
        ("only that", [name for name in older if name not in names]),
    ):
        text += f"\n{where}: {'; '.join(alone)}" if alone else ""
    return text + "".join(f"\nnot the same: {difference}" for difference in differences(new, old))


def differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What was not alike between two runs, beside what they found: or the ratios would be taken for something else."""
    a, b = _conditions(json.loads(json.dumps(new))), _conditions(old)  # lists and not tuples, as the file holds them
    # a flag that one of them did not know yet was left alone by it
    names = [name for name in a | b if (a.get(name) or None) != (b.get(name) or None)]
    return [f"{name}: {a.get(name)}, and {b.get(name)} there" for name in names]


def _conditions(result: dict[str, Any]) -> dict[str, Any]:
    found = {"cost_model": result.get("cost_model")}
    for part in ("machine", "versions", "arguments"):
        found |= result.get(part, {})
    return {name: value for name, value in found.items() if name not in _RESULTS}


def _shown(heading: str, value: Any) -> Any:
    if isinstance(value, float) and heading.endswith(" ms"):
        return 1e3 * value
    return f"{value:.1%}" if isinstance(value, float) and heading.endswith("%") else value


def _tells(name: str, value: Any) -> bool:
    """No functions, and no keys of anybody."""
    return not callable(value) and "key" not in name


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
