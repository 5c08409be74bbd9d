"""What a setting is: a field of a frozen section that carries its documentation and knows which values it accepts.

`core.config` holds the settings themselves.
"""

import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxserve.core.errors import ConfigError


def setting(default: Any, doc: str) -> Any:
    """A dataclass field that carries its own documentation, for `--help` and the docs."""
    return field(default=default, metadata={"doc": doc})


def require(good: bool, name: str, value: object, accepted: str) -> None:
    """ConfigError unless `good`: names the setting, its value, and what is accepted."""
    if not good:
        raise ConfigError(f"{name} = {value!r} cannot work: give {accepted}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as `--help`, the docs and the type check see it."""

    section: str
    name: str
    annotation: Any
    default: Any
    doc: str

    @property
    def choices(self) -> tuple[Any, ...]:
        return typing.get_args(self.annotation) if typing.get_origin(self.annotation) is Literal else ()

    def accept(self, value: Any) -> Any:
        """`value` as the section stores it, or ConfigError naming what is accepted."""
        if self.choices:
            require(value in self.choices, self.name, value, "one of " + ", ".join(map(repr, self.choices)))
            return value
        if typing.get_origin(self.annotation) is tuple:
            items = typing.cast(list[Any], value if isinstance(value, list | tuple) else [None])
            require(all(type(item) is int for item in items), self.name, typing.cast(object, value), "a list of ints")
            return tuple(items)
        accepted = (
            typing.get_args(self.annotation) if isinstance(self.annotation, types.UnionType) else (self.annotation,)
        )
        if float in accepted and type(value) is int:
            return float(value)
        names = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in accepted)
        require(type(value) in accepted, self.name, value, names)
        return value
