"""Reads a record's file (`sim.record` shows its lines). A line that is none is an error that names it.

The last line may be cut off: the engine that wrote it was killed.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Bucket
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.file import cost_from_json
from jaxserve.sim.lines import open_lines
from jaxserve.sim.record import VERSION, Record, RecordedRequest, RecordedSequence, RecordedStep


def is_record(first_line: str) -> bool:
    return first_line.startswith('{"jaxserve_record"')


def read_record(path: str | Path) -> Record:
    """Raises ConfigError with the line and what was expected."""
    with open_lines(path, "`jaxserve serve --record` writes one") as lines:
        return _read(str(path), lines)


def _read(path: str, lines: Iterable[str]) -> Record:
    record: Record | None = None
    by_number: dict[int, RecordedRequest] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            fields = cast(dict[str, Any], json.loads(line))
            if record is None:
                record = _header(where, fields)
            elif "request" in fields:
                request = RecordedRequest(fields.pop("request"), **fields)
                by_number[request.number] = request
            elif "step" in fields:
                fields.update(bucket=Bucket(*fields["bucket"]))
                record.steps.append(RecordedStep(**fields))
            else:
                request_number, index = fields.pop("end")
                fields.pop("output", None)
                fields.update(blocks=tuple(fields["blocks"]))
                by_number[request_number].ends[index] = RecordedSequence(**fields)
        except ConfigError:
            raise
        except ValueError as error:
            if record is not None and not line.endswith("\n"):
                break  # the engine was killed while it wrote
            raise ConfigError(f"{where}: not JSON: {error}: expected a line of a record") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{where}: no line of a record ({error}): `jaxserve serve --record` writes them"
            ) from error
    if record is None:
        raise ConfigError(f"{path}: empty: `jaxserve serve --record` writes records")
    record.requests = sorted(by_number.values(), key=lambda r: (r.queued_s, r.order, r.number))
    return record


def _header(where: str, fields: dict[str, Any]) -> Record:
    if fields.get("jaxserve_record") != VERSION:
        raise ConfigError(f"{where}: no record of version {VERSION}: its first line holds jaxserve_record = {VERSION}")
    cost = fields["cost_model"]
    return Record(
        EngineConfig.from_settings(**fields["config"]),
        fields["num_blocks"],
        fields["max_model_len"],
        Tenants(Tenant(**tenant) for tenant in fields["tenants"]),
        cost_from_json(cost) if cost else None,
        fields["machine"],
    )
