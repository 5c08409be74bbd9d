"""Tenants: who sends requests, how much of the machine is theirs, and what they were promised.

    [tenants.chat]                 # configs/tenants.toml
    keys = ["chat-key-1"]
    priority = 0
    ttft_slo_s = 0.5

A request names its tenant by an API key or by a field; a name that no tenant has means `default`. A tenant is a
boundary: what its requests may ask for beyond its class and its objectives is said here, and so are its limits.
Limits count in one process; docs/serving.md says what that means for several replicas.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jaxserve.core.errors import ConfigError
from jaxserve.core.files import read_toml
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.settings import require

DEFAULT = "default"
MOST_LOWER = 16
"""Classes that a request may lower itself by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    name: str
    keys: tuple[str, ...] = ()
    """API keys that mean this tenant."""
    weight: float = 1.0
    """Against the others': with the ordering `fair` its part of the service, slots and blocks; with any ordering its
    part of the queue and of the cached prefixes."""
    priority: int = 0
    """Class of its requests: smaller goes first."""
    may_raise_priority: bool = False
    """Its requests may ask for more than its class: a smaller `priority`, a tighter `ttft_slo_s` or `tpot_slo_s`."""
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    kv_guaranteed: float = 0.0
    """Share of the KV blocks that is its own: lent while idle, taken back by preemption."""
    kv_max: float = 1.0
    """Share of the KV blocks that it never exceeds."""
    shares_prefixes: bool = False
    """Its prefix-cache blocks are in one pool with those of all tenants that say so; else they are its own."""
    max_waiting: int | None = None
    """Most requests that wait; one more is refused."""
    max_concurrent: int | None = None
    """Most requests that wait or run; one more is refused."""
    requests_per_s: float | None = None
    """Rate above which requests are refused; bursts of up to a second's worth pass."""
    tokens_per_minute: int | None = None
    """Prompt and output tokens; requests above it are refused, bursts of up to a minute's worth pass."""
    batch_share: float = 1.0
    """Share of `batch_concurrency` that the lines of its own batches may hold at once."""

    def __post_init__(self) -> None:
        where = f"tenants.{self.name}."
        require(self.weight > 0, where + "weight", self.weight, "a positive number")
        require(0.0 <= self.kv_guaranteed <= 1.0, where + "kv_guaranteed", self.kv_guaranteed, "a share from 0 to 1")
        require(
            self.kv_guaranteed <= self.kv_max <= 1.0 and self.kv_max > 0.0, where + "kv_max", self.kv_max,
            "a share up to 1, not below kv_guaranteed",
        )  # fmt: skip
        require(0.0 < self.batch_share <= 1.0, where + "batch_share", self.batch_share, "a share above 0 and up to 1")
        for name in (
            "ttft_slo_s", "tpot_slo_s", "max_waiting", "max_concurrent", "requests_per_s", "tokens_per_minute",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value > 0, where + name, value, "a positive number")

    def allowed_priority(self, asked: int | None) -> int:
        """The class of a request that asks for `asked`: a request may lower itself, and raise itself if it may.

        It may lower itself by at most `MOST_LOWER` classes, since the queue looks at each class of a tenant that waits.
        """
        if asked is None:
            return self.priority
        return asked if self.may_raise_priority else min(max(asked, self.priority), self.priority + MOST_LOWER)

    def allowed_objective(self, asked: float | None, promised: float | None) -> float | None:
        """The objective (seconds) that the scheduler works to: what was promised, or a looser one.

        A tighter one, or one where nothing was promised, would put the request before other tenants' requests: it
        counts only for a tenant that may raise its priority.
        """
        if asked is None or (promised is None and not self.may_raise_priority):
            return promised
        return asked if self.may_raise_priority or promised is None else max(asked, promised)


def split(total: int, tenants: Mapping[str, Tenant], *, guarantees: bool) -> dict[str, float]:
    """Each tenant's part of `total`, in proportion to its weight.

    `guarantees`: of KV blocks. A tenant whose `kv_guaranteed` is more than that has its guarantee, and the others
    divide the rest by their weights.
    """
    open_, parts, left = dict(tenants), dict[str, float](), float(total)
    while open_:
        weights = sum(tenant.weight for tenant in open_.values())
        by_weight = {name: left * tenant.weight / weights for name, tenant in open_.items()}
        fixed = [name for name in open_ if guarantees and open_[name].kv_guaranteed * total > by_weight[name]]
        if not fixed:
            return parts | by_weight
        for name in fixed:
            parts[name] = open_.pop(name).kv_guaranteed * total
            left -= parts[name]
    return parts


class Tenants:
    """All tenants by name; a name that no tenant has is `default`'s, which always exists. Equal if all of theirs are.

    Without any, `default` is alone: its requests harm no other tenant, so they may set their own priority.
    """

    def __init__(self, tenants: Iterable[Tenant] = ()) -> None:
        self._by_name = {tenant.name: tenant for tenant in tenants}
        self._given = bool(self._by_name)
        self._by_name.setdefault(DEFAULT, Tenant(name=DEFAULT, may_raise_priority=not self._given))
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

    def prefix_scope(self, name: str) -> str | None:
        """Requests with an equal scope, and an equal `cache_salt`, share prefixes. None: the common pool."""
        tenant = self[name]
        return None if tenant.shares_prefixes else tenant.name

    def with_names(self, names: Iterable[str]) -> "Tenants":
        """These, and a tenant for each other name, with the settings of `default` but its keys and its guarantee.

        For API keys whose tenant has no table: without this their owners would all be the one tenant `default`.
        """
        missing = sorted(set(names) - set(self._by_name))
        if not missing:
            return self
        given = list(self) if self._given else []
        base = self[DEFAULT] if self._given else Tenant(name=DEFAULT)
        more = [dataclasses.replace(base, name=name, keys=(), kv_guaranteed=0.0) for name in missing]
        return Tenants([*given, *more])

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
    "max_concurrent": (int,),
    "requests_per_s": (int, float),
    "tokens_per_minute": (int,),
    "batch_share": (int, float),
    "may_raise_priority": (bool,),
    "shares_prefixes": (bool,),
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
            good = isinstance(value, _KINDS[field]) and isinstance(value, bool) == (_KINDS[field] == (bool,))
        if not good:
            raise ConfigError(f"{where}.{field} = {value!r} cannot work: give {_expected(field)}")
    settings: dict[str, Any] = fields | {"keys": tuple(fields.get("keys", ()))}
    return Tenant(name=name, **settings)


def _expected(field: str) -> str:
    if field == "keys":
        return "a list of texts"
    kinds = _KINDS[field]
    return "a whole number" if kinds == (int,) else "true or false" if kinds == (bool,) else "a number"
