"""Writes a configuration as the TOML file that `EngineConfig.from_toml` reads back."""

import dataclasses
import json
from typing import Any

from jaxserve.core.config import EngineConfig, all_settings


def to_toml(config: EngineConfig, heading: str = "", notes: dict[str, str] | None = None) -> str:
    """The settings that are not the defaults, one table a section.

    `heading` is put before them as a comment; `notes` beside settings, by name.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for section in (f.name for f in dataclasses.fields(config)):
        table = [
            f"{setting.name} = {_value(getattr(getattr(config, section), setting.name))}"
            + (f"  # {notes[setting.name]}" if notes and setting.name in notes else "")
            for setting in all_settings()
            if setting.section == section
            and getattr(getattr(config, section), setting.name) not in (setting.default, None)
        ]
        if table:
            lines += ["", f"[{section}]", *table]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
