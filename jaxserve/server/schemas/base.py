"""How a body is read: strictly, every field checked, an unknown one refused by name.

So a misspelt parameter never passes for a default, and what is not supported yet says so instead of being ignored.
"""

from typing import Any, ClassVar, Self, cast

import pydantic
import pydantic_core

from jaxserve.core.errors import InvalidRequest

_KINDS = frozenset({"str", "constrained-str", "int", "float", "bool"})


class Body(pydantic.BaseModel):
    """A request body. `later` names fields that other servers have and this one does not have yet."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def parse(cls, raw: bytes | bytearray) -> Self:
        """Raises InvalidRequest, with the field's name, for whatever is not as documented."""
        return cls.check(parse_json(raw))

    @classmethod
    def check(cls, body: object) -> Self:
        """As `parse`, of a body that is no longer JSON."""
        if not isinstance(body, dict):
            raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
        fields = cast(dict[str, Any], body)
        for name in fields.keys() & cls.later:
            if fields[name]:  # null, false and empty ask for nothing
                raise InvalidRequest(f"{name} is not supported yet: leave it out", name)
        try:
            return cls.model_validate({name: value for name, value in fields.items() if name not in cls.later})
        except pydantic.ValidationError as error:
            raise _refusal(cls, error) from None


def parse_json(raw: bytes | bytearray) -> Any:
    """JSON without NaN, without half characters, and no deeper than 200 levels."""
    try:
        return pydantic_core.from_json(bytes(raw), allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _refusal(model: type[Body], error: pydantic.ValidationError) -> InvalidRequest:
    """The first field at fault; its messages joined where a field may be one of several things."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = ", ".join(sorted(model.model_fields))
        return InvalidRequest(f"unknown field {field!r}; known: {known}", field)
    if first["type"] == "missing":
        place = ".".join(map(str, first["loc"]))
        return InvalidRequest(f"{place} is missing: it is required", field)
    mine = [e for e in errors[:50] if e["loc"] and str(e["loc"][0]) == field] or errors[:1]
    deepest = max(len(e["loc"]) for e in mine)  # of what a field may be, the one that it most nearly is
    said = dict.fromkeys(_said(e) for e in mine if len(e["loc"]) == deepest)
    return InvalidRequest("; or ".join(said), field)


def _said(error: pydantic_core.ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    message, _, length = message.partition(" after validation, not ")
    # pydantic names the members of a union too: "str", "list[TextPart]"
    parts = [str(part) for part in error["loc"] if isinstance(part, int) or ("[" not in part and part not in _KINDS)]
    given = length or repr(error["input"])
    return (
        f"{'.'.join(parts)}: {message[:1].lower()}{message[1:]}, not {given if len(given) < 80 else given[:77] + '...'}"
    )


def shown(description: str, default: Any = None, **schema: Any) -> Any:
    """A field whose range the OpenAPI document shows and `SamplingParams` checks, with better words."""
    return pydantic.Field(default, description=description, json_schema_extra=schema)
