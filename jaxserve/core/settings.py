"""What a setting is: a field of a frozen section that carries its documentation, knows which values it accepts, and
which other settings it hangs on.

    chunk_size: int | None = setting(None, "most prompt tokens ...", only_with=("policy", "chunked", "adaptive"))

The settings themselves are in `core.sections` and `core.server_sections`.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxserve.core.errors import ConfigError


def setting(
    default: Any,
    doc: str,
    *,
    only_with: tuple[str, ...] = (),
    needs: str | None = None,
    replaces: tuple[str, ...] = (),
    at_most: str | None = None,
) -> Any:
    """A dataclass field that says of itself what `--help`, the docs and `core.idle_settings` tell.

    Args:
      only_with: another setting, and those of its values with which this one counts.
      needs: another setting, without which (none, 0, empty) this one does not count.
      replaces: others, which do not count where this one is given.
      at_most: another setting, which bounds this one.
    """
    hangs_on = {"only_with": only_with, "needs": needs, "replaces": replaces, "at_most": at_most}
    return field(default=default, metadata={"doc": doc, **hangs_on})


def require(good: bool, name: str, value: object, accepted: str) -> None:
    """ConfigError unless `good`: names the setting, its value, and what is accepted."""
    if not good:
        raise ConfigError(f"{name} = {value!r} cannot work: give {accepted}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as `--help`, the docs and the type check see it; the last four fields: see `setting`."""

    section: str
    name: str
    annotation: Any
    default: Any
    doc: str
    only_with: tuple[str, ...] = ()
    needs: str | None = None
    replaces: tuple[str, ...] = ()
    at_most: str | None = None

    @property
    def choices(self) -> tuple[Any, ...]:
        return typing.get_args(self.annotation) if typing.get_origin(self.annotation) is Literal else ()

    @property
    def meaning(self) -> str:
        """Its documentation, its choices, and what it hangs on."""
        choices = f" [{', '.join(map(str, self.choices))}]" if self.choices else ""
        hangs_on = ", ".join(self._hangs_on())
        return self.doc + choices + (f" ({hangs_on})" if hangs_on else "")

    def _hangs_on(self) -> Iterator[str]:
        if self.only_with:
            other, *values = self.only_with
            yield f"only with {other} {' or '.join(values)}"
        if self.needs:
            yield f"only with {self.needs}"
        if self.replaces:
            yield f"replaces {' and '.join(self.replaces)}"
        if self.at_most:
            yield f"at most {self.at_most}"

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
