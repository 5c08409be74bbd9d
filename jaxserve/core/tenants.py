"""Tenants: who sends requests, how much of the machine is theirs, and what they were promised.

    [tenants.chat]                 # configs/tenants.toml
    keys = ["chat-key-1"]
    priority = 0
    ttft_slo_s = 0.5

A request names its tenant by an API key or by a field; whoever is unknown is `default`.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jaxserve.core.errors import ConfigError
from jaxserve.core.files import read_toml
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.settings import require

DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    name: str
    keys: tuple[str, ...] = ()
    """API keys that mean this tenant."""
    weight: float = 1.0
    """Against the others': with the ordering `fair` its part of the service, slots and blocks; always of the queue."""
    priority: int = 0
    """Class of its requests: smaller goes first."""
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    kv_guaranteed: float = 0.0
    """Share of the KV blocks that is its own: lent while idle, taken back by preemption."""
    kv_max: float = 1.0
    """Share of the KV blocks that it never exceeds."""
    max_waiting: int | None = None
    """Most requests that wait; one more is refused."""
    requests_per_s: float | None = None
    """Rate above which requests are refused; bursts of up to a second's worth pass."""

    def __post_init__(self) -> None:
        where = f"tenants.{self.name}."
        require(self.weight > 0, where + "weight", self.weight, "a positive number")
        require(0.0 <= self.kv_guaranteed <= 1.0, where + "kv_guaranteed", self.kv_guaranteed, "a share from 0 to 1")
        require(
            self.kv_guaranteed <= self.kv_max <= 1.0 and self.kv_max > 0.0, where + "kv_max", self.kv_max,
            "a share up to 1, not below kv_guaranteed",
        )  # fmt: skip
        for name in ("ttft_slo_s", "tpot_slo_s", "max_waiting", "requests_per_s"):
            value = getattr(self, name)
            require(value is None or value > 0, where + name, value, "a positive number")


class Tenants:
    """All tenants by name; a name that nobody has is `default`'s, which always exists. Equal if all of theirs are."""

    def __init__(self, tenants: Iterable[Tenant] = ()) -> None:
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._by_name.setdefault(DEFAULT, Tenant(name=DEFAULT))
        keys: set[str] = set()
        for tenant in self._by_name.values():
            for key in tenant.keys:
                require(key not in keys, f"tenants.{tenant.name}.keys", "a key", "keys that no other tenant has")
                keys.add(key)
        promised = sum(tenant.kv_guaranteed for tenant in self._by_name.values())
        require(promised <= 1.0 + 1e-9, "kv_guaranteed", promised, "shares that add up to at most 1")

    def __getitem__(self, name: str) -> Tenant:
        return self._by_name.get(name) or self._by_name[DEFAULT]

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tenants) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def to_toml(self) -> str:
        """A file that `from_toml` reads back, keys included; fields that are not the defaults."""
        lines: list[str] = []
        for tenant in self:
            lines.append(f"[tenants.{json.dumps(tenant.name, ensure_ascii=False)}]")
            for field in dataclasses.fields(Tenant)[1:]:
                value = getattr(tenant, field.name)
                if value != field.default:
                    lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
            lines.append("")
        return "\n".join(lines)

    @classmethod
    def of(cls, config: SchedulerConfig) -> "Tenants":
        """Those of the file that the settings name; `default` alone if they name none. Raises ConfigError."""
        return cls.from_toml(config.tenants) if config.tenants else cls()

    @classmethod
    def from_toml(cls, path: str | Path) -> "Tenants":
        """Raises ConfigError for a file or a field that cannot work."""
        tables = read_toml(path, "see configs/tenants.toml")
        named = tables.get("tenants")
        if set(tables) != {"tenants"} or not isinstance(named, dict):
            raise ConfigError(f"{path}: expected tables [tenants.NAME] and nothing else; see configs/tenants.toml")
        return cls(_tenant(path, name, table) for name, table in cast(dict[str, Any], named).items())


_KINDS: dict[str, tuple[type, ...]] = {
    "weight": (int, float),
    "priority": (int,),
    "ttft_slo_s": (int, float),
    "tpot_slo_s": (int, float),
    "kv_guaranteed": (int, float),
    "kv_max": (int, float),
    "max_waiting": (int,),
    "requests_per_s": (int, float),
}


def _tenant(path: str | Path, name: str, table: object) -> Tenant:
    where = f"{path}: tenants.{name}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table [tenants.{name}]")
    fields = cast(dict[str, Any], table)
    known = {f.name for f in dataclasses.fields(Tenant)} - {"name"}
    for field, value in fields.items():
        if field not in known:
            raise ConfigError(f"{where}: unknown field {field!r}; known: {', '.join(sorted(known))}")
        if field == "keys":
            keys = cast(list[object], value if isinstance(value, list) else [None])
            good = all(isinstance(key, str) and key for key in keys)
        else:
            good = isinstance(value, _KINDS[field]) and not isinstance(value, bool)
        if not good:
            raise ConfigError(f"{where}.{field} = {value!r} cannot work: give {_expected(field)}")
    settings: dict[str, Any] = fields | {"keys": tuple(fields.get("keys", ()))}
    return Tenant(name=name, **settings)


def _expected(field: str) -> str:
    if field == "keys":
        return "a list of texts"
    return "a whole number" if _KINDS[field] == (int,) else "a number"
