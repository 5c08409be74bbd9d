"""The whole configuration: all sections, from flat names or from a TOML file.

The settings themselves are in `core.sections` and `core.server_sections`, what a setting is in `core.settings`. Names
are unique over the sections, so that keywords and flags can be flat.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.core.files import read_toml
from jaxserve.core.sections import BucketConfig, CacheConfig, ModelConfigSection, RuntimeConfig, SchedulerConfig
from jaxserve.core.server_sections import BatchConfig, ServerConfig
from jaxserve.core.settings import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All sections. Build one with `from_settings` (flat names) or `from_toml` (a file, flat names over it)."""

    model: ModelConfigSection = field(default_factory=ModelConfigSection)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)

    @classmethod
    def from_settings(cls, **settings: Any) -> "EngineConfig":
        """Settings by their flat names; ConfigError for an unknown name or a value of the wrong type."""
        return cls().replace(**settings)

    @classmethod
    def from_toml(cls, path: str | Path, **settings: Any) -> "EngineConfig":
        """A TOML file with one table a section; `settings` by their flat names go over it."""
        flat: dict[str, Any] = {}
        sections = _sections()
        for section, table in read_toml(path, "configs/ holds examples").items():
            if section not in sections or not isinstance(table, dict):
                raise ConfigError(f"{path}: unknown table [{section}]; known: {', '.join(sections)}")
            known = {f.name for f in dataclasses.fields(sections[section])}
            for name in typing.cast(dict[str, Any], table):
                if name not in known:
                    raise ConfigError(
                        f"{path}: unknown setting {name!r} in [{section}]; known: {', '.join(sorted(known))}"
                    )
            flat |= typing.cast(dict[str, Any], table)
        return cls.from_settings(**(flat | settings))

    def replace(self, **settings: Any) -> "EngineConfig":
        """A copy with some settings changed, by their flat names."""
        owner = {s.name: s for s in all_settings()}
        changed: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if name not in owner:
                near = difflib.get_close_matches(name, owner, 1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise ConfigError(f"unknown setting {name!r}{meant}: docs/settings.md has them all")
            changed.setdefault(owner[name].section, {})[name] = owner[name].accept(value)
        sections = {s: dataclasses.replace(getattr(self, s), **values) for s, values in changed.items()}
        return dataclasses.replace(self, **sections)


SERVER_SECTIONS = ("server", "batches")
"""What only `jaxserve serve` heeds: no flags of other commands, no keywords of `LLM`."""


def all_settings() -> Iterator[Setting]:
    """Every setting of every section, in the order of the file."""
    for section, kind in _sections().items():
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            yield Setting(section, f.name, hints[f.name], f.default, **f.metadata)


def _sections() -> Mapping[str, type]:
    return typing.get_type_hints(EngineConfig)
