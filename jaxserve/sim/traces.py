"""Request traces: JSON, one object a line, read as they are needed.

    {"arrival_s": 0.05, "prompt_tokens": 3180, "output_tokens": 8, "tenant": "chat", "prefix_blocks": [0, 14, 15]}

The first three fields must be there. `prefix_blocks` are ids of the prompt's leading blocks of `block_tokens` (512)
tokens: prompts whose ids begin alike begin alike. A line may have every other field of `Arrival` as well: `n`,
`cache_salt`, `abort_s`, `abort_tokens`, `priority`, `ttft_slo_s`, `tpot_slo_s`. Lines as Mooncake publishes them are
read, too (their stamps are milliseconds, their blocks of 512 tokens):

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}
"""

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from jaxserve.core.errors import ConfigError
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.lines import open_lines
from jaxserve.sim.record_reader import is_record, read_record

_KNOWN = {"arrival_s", *(field.name for field in dataclasses.fields(Arrival))} - {"at_s"}

_EXAMPLE = '{"arrival_s": 0.05, "prompt_tokens": 3180, "output_tokens": 8}'
_MOONCAKE = {"input_length": "prompt_tokens", "output_length": "output_tokens", "hash_ids": "prefix_blocks"}


def read_trace(path: str | Path) -> Iterator[Arrival]:
    """A JSONL trace, line by line, in order of time: the fields of `Arrival`, of which the first three must be there.

    A record (`sim.record`) is read as a trace, too: whole, since its requests are written as they end.

    Raises:
      ConfigError: with the line, the field and what was expected.
    """
    last_s = 0.0
    with open_lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and is_record(line):
                yield from read_record(path).arrivals()
                return
            if line.strip():
                arrival = _arrival(f"{path}:{number}", line)
                if arrival.at_s < last_s:
                    raise ConfigError(
                        f"{path}:{number}: arrival_s = {arrival.at_s!r}: expected at least {last_s!r}, the line "
                        "before's: a trace is in order of arrival"
                    )
                last_s = arrival.at_s
                yield arrival


def _arrival(where: str, line: str) -> Arrival:
    try:
        fields: object = json.loads(line.rstrip())  # or an error at the end would be in a second line
    except ValueError as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        made = "; docs/lab.md makes them of a CSV file" if ".csv:" in where.lower() else ""
        raise ConfigError(f"{where}: not JSON ({what}): expected one object a line, as in {_EXAMPLE}{made}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: expected one object a line, as in {_EXAMPLE}")
    fields = cast(dict[str, object], fields)
    if "input_length" in fields:
        fields = _from_mooncake(where, fields)
    if unknown := sorted(fields.keys() - _KNOWN):
        raise ConfigError(f"{where}: {unknown[0]}: an unknown field; known: {', '.join(sorted(_KNOWN))}")
    block_tokens = _count(where, fields, "block_tokens", 512)
    prompt = _count(where, fields, "prompt_tokens")
    return Arrival(
        _seconds(where, fields),
        prompt,
        _count(where, fields, "output_tokens"),
        _word(where, fields, "tenant", "default"),
        _word(where, fields, "kind", ""),
        _blocks(where, fields, prompt, block_tokens),
        block_tokens,
        n=_count(where, fields, "n", 1),
        cache_salt=_word(where, fields, "cache_salt", ""),
        abort_s=_limit(where, fields, "abort_s"),
        abort_tokens=_count(where, fields, "abort_tokens") if fields.get("abort_tokens") is not None else None,
        priority=_priority(where, fields),
        ttft_slo_s=_limit(where, fields, "ttft_slo_s"),
        tpot_slo_s=_limit(where, fields, "tpot_slo_s"),
        session_id=_word(where, fields, "session_id", "") or None,
    )


def _from_mooncake(where: str, fields: dict[str, object]) -> dict[str, object]:
    """A line as Mooncake publishes them, with our names."""
    stamp = fields.pop("timestamp", None)
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        raise ConfigError(f"{where}: timestamp = {stamp!r}: expected milliseconds since the start")
    return {"arrival_s": stamp / 1e3} | {_MOONCAKE.get(name, name): value for name, value in fields.items()}


def _seconds(where: str, fields: dict[str, object]) -> float:
    value = fields.get("arrival_s")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{where}: arrival_s = {value!r}: expected seconds since the start, 0 or more")
    return float(value)


def _count(where: str, fields: dict[str, object], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {name} = {value!r}: expected a whole number of at least 1")
    return value


def _limit(where: str, fields: dict[str, object], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: {name} = {value!r}: expected seconds, more than 0")
    return float(value)


def _priority(where: str, fields: dict[str, object]) -> int | None:
    value = fields.get("priority")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{where}: priority = {value!r}: expected a whole number")
    return value


def _word(where: str, fields: dict[str, object], name: str, default: str) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {name} = {value!r}: expected a string")
    return value


def _blocks(where: str, fields: dict[str, object], prompt: int, block_tokens: int) -> tuple[int, ...]:
    value = fields.get("prefix_blocks")
    if value is None:
        return ()
    blocks = cast(list[object], value) if isinstance(value, list) else [None]
    if not all(type(block) is int and block >= 0 for block in blocks):
        shown = str(cast(object, value))[:80]
        raise ConfigError(f"{where}: prefix_blocks = {shown}: expected a list of ids, each 0 or more")
    if len(blocks) > -(-prompt // block_tokens):
        raise ConfigError(
            f"{where}: prefix_blocks: {len(blocks)} blocks of {block_tokens} tokens are more than the "
            f"{prompt} prompt_tokens hold"
        )
    return tuple(cast(list[int], blocks))


def spread(arrivals: Iterable[Arrival], rng: random.Random) -> Iterator[Arrival]:
    """Arrivals that share a time stamp, strewn evenly at random over the time to the next stamp.

    For traces whose stamps are coarse (Mooncake's are multiples of 3 s): replayed as they are, they make false bursts.
    """
    group: list[Arrival] = []
    width = 0.0
    for arrival in arrivals:
        if group and arrival.at_s != group[0].at_s:
            width = arrival.at_s - group[0].at_s
            yield from _strewn(group, width, rng)
            group = []
        group.append(arrival)
    yield from _strewn(group, width, rng)


def _strewn(group: list[Arrival], width: float, rng: random.Random) -> Iterator[Arrival]:
    if len(group) == 1:
        yield from group
        return
    for arrival, offset in zip(group, sorted(rng.random() for _ in group), strict=True):
        yield dataclasses.replace(arrival, at_s=arrival.at_s + offset * width)


def window(arrivals: Iterable[Arrival], from_s: float, seconds: float, compression: float = 1.0) -> list[Arrival]:
    """The arrivals of a stretch of a trace, from 0 on, with time run `compression` times faster."""
    return [
        dataclasses.replace(a, at_s=(a.at_s - from_s) / compression)
        for a in arrivals
        if from_s <= a.at_s < from_s + seconds
    ]


def merged(*lists: Iterable[Arrival]) -> list[Arrival]:
    """Several lists as one, in order of time."""
    return sorted((a for arrivals in lists for a in arrivals), key=lambda a: a.at_s)
