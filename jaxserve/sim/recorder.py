"""Writes a record of a running engine, line by line: an observer that is shown every step.

    file = open_recording("monday.jsonl")
    recorder = record_engine(engine, file, config, tenants)
    ...
    recorder.close(engine.scheduler.live())

What the lines hold, and what they keep to themselves, is told in `sim.record`.
"""

import dataclasses
import hashlib
import json
import os
import platform
import secrets
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from jaxserve import __version__
from jaxserve.cache.prefix_cache import PrefixCache
from jaxserve.core.config import EngineConfig, all_settings
from jaxserve.core.errors import ConfigError
from jaxserve.core.events import Finished, Refused, TokenSampled
from jaxserve.core.plan import StepPlan
from jaxserve.core.sequence import FinishReason, Request, Sequence
from jaxserve.core.step_record import ScheduledStep, StepRecord
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.fitted import FittedCost
from jaxserve.costs.model import CostModel, FormulaCost, StepFeatures
from jaxserve.engine.engine import Engine
from jaxserve.sim.record import VERSION

_STEPS_UNDER_WAY = 8
_PRIVATE = ("model", "server")
"""Sections that a record leaves out: who serves what where is nobody's business in a trace."""

Name = tuple[int, int]
"""Of a sequence in a record: its request's number, and which of the request's completions it is."""
UNKNOWN: Name = (-1, 0)


class Recorder:
    """An engine's observer that writes a record. `num_blocks`: of the pool, the scratch block included."""

    def __init__(
        self,
        file: TextIO,
        config: EngineConfig,
        num_blocks: int,
        max_model_len: int,
        start_s: float,
        *,
        tenants: Tenants | None = None,
        cost: CostModel | None = None,
        machine: dict[str, Any] | None = None,
        tokens: bool = False,
    ) -> None:
        self._file, self._start_s, self._tokens = file, start_s, tokens
        self._block_size = config.cache.block_size
        self._prefixes = PrefixCache(config.cache.block_size)
        self._key = secrets.token_bytes(32)
        self._met: dict[Sequence, Name] = {}
        self._numbers: dict[int, tuple[int, Request, int]] = {}  # by identity: number, request, sequences not ended
        self._leaving: deque[tuple[int, Sequence]] = deque()
        self._count = 0
        self._step = 0
        header = {
            "jaxserve_record": VERSION,
            "config": _settings(config),
            "num_blocks": num_blocks,
            "max_model_len": max_model_len,
            "tenants": [_tenant(tenant) for tenant in tenants or ()],
            "cost_model": cost.to_json() if isinstance(cost, FormulaCost | FittedCost) else None,
            "machine": machine or {},
        }
        self._write(header)

    def observe(self, record: StepRecord) -> None:
        if record.step is not None:
            for sequence in record.step.prefills:
                self._name(sequence)
            self._step = record.step.plan.step
            self._write_step(record.step, record)
            self._forget()
        for event in record.events:
            match event:
                case TokenSampled() if event.finish is not None:
                    self._end(event.sequence, event.finish)
                case Finished():
                    self._end(event.sequence, event.reason)
                case Refused() if event.request is not None:
                    self._count += 1
                    self._write(self._described(self._count - 1, event.request, record.now) | {"refused": event.reason})
                case _:
                    pass

    def close(self, live: Iterable[Sequence] = ()) -> None:
        """`live`: what waits or runs still; it is written, without an end."""
        for sequence in live:
            self._name(sequence)
        self._file.close()

    def _name(self, sequence: Sequence) -> Name:
        """(request's number, index). One that is new is written down."""
        name = self._met.get(sequence)
        if name is None:
            number = self._number(sequence)
            name = self._met[sequence] = number, sequence.index
        return name

    def _number(self, sequence: Sequence) -> int:
        request = sequence.request
        known = self._numbers.get(id(request))
        if known is not None:
            return known[0]
        number, self._count = self._count, self._count + 1
        self._numbers[id(request)] = number, request, request.params.n
        fields = self._described(number, request, sequence.queued_s)
        fields["max_output_tokens"] = sequence.max_len - sequence.num_prompt
        fields["order"] = sequence.arrival
        if self._tokens:
            fields["prompt"] = list(request.prompt)
        self._write(fields)
        return number

    def _forget(self) -> None:
        """Sequences that ended some steps ago: no step under way has a row of theirs any more."""
        while self._leaving and self._leaving[0][0] < self._step - _STEPS_UNDER_WAY:
            _, sequence = self._leaving.popleft()
            del self._met[sequence]
            number, request, left = self._numbers[id(sequence.request)]
            if left == 1:
                del self._numbers[id(request)]
            else:
                self._numbers[id(request)] = number, request, left - 1

    def _described(self, number: int, request: Request, queued_s: float) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "request": number,
            "arrival_s": self._time(request.arrival_s),
            "queued_s": self._time(queued_s),
            "prompt_tokens": len(request.prompt),
            "max_output_tokens": request.params.max_tokens,
            "tenant": request.tenant,
            "n": request.params.n,
        }
        for name in ("priority", "ttft_slo_s", "tpot_slo_s", "owner"):
            if getattr(request, name) is not None:
                fields[name] = getattr(request, name)
        return fields

    def _write_step(self, step: ScheduledStep, record: StepRecord) -> None:
        plan, features = step.plan, StepFeatures.of(step.plan)
        rows = [self._met.get(sequence, UNKNOWN) for sequence in step.sequences]
        preempted = [self._met.get(sequence, UNKNOWN) for sequence in step.preempted]
        self._write(
            {
                "step": plan.step,
                "planned_s": self._time(step.planned_s),
                "committed_s": self._time(record.now),
                "seconds": round(record.seconds, 9),
                "bucket": list(plan.bucket),
                "decodes": len(plan.decodes),
                "decode_context": features.decode_context,
                "decode_longest": features.decode_longest,
                "prefills": [
                    [*name, r.start, r.length] for name, r in zip(rows[len(plan.decodes) :], plan.prefills, strict=True)
                ],
                "decision": decision(plan, rows, preempted),
            }
        )

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        known = len(sequence.tokens) - len(sequence.tokens) % self._block_size
        links = self._prefixes.hash_blocks(sequence, known // self._block_size)
        fields: dict[str, Any] = {
            "end": list(self._name(sequence)),
            "ended_s": self._time(sequence.finished_s or 0.0),
            "output_tokens": sequence.num_outputs,
            "reason": str(reason),
            "first_scheduled_s": self._time(sequence.first_scheduled_s),
            "first_token_s": self._time(sequence.first_token_s),
            "blocks": [self._id(link) for link in links],
        }
        if self._tokens:
            fields["output"] = sequence.output_tokens
        self._write(fields)
        self._leaving.append((self._step, sequence))

    def _id(self, link: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(link, digest_size=6, key=self._key).digest())

    def _time(self, at_s: float | None) -> Any:
        return None if at_s is None else round(at_s - self._start_s, 9)

    def _write(self, fields: dict[str, Any]) -> None:
        self._file.write(json.dumps(fields, separators=(",", ":")) + "\n")


def decision(plan: StepPlan, rows: Iterable[Name], preempted: Iterable[Name]) -> int:
    """A number that two plans share if they run the same rows in the same bucket and preempt the same sequences."""
    named = [(*name, row.start, row.length) for name, row in zip(rows, plan.rows, strict=True)]
    return zlib.crc32(json.dumps([named, list(plan.bucket), list(preempted)]).encode())


def _settings(config: EngineConfig) -> dict[str, Any]:
    """Settings that are not the defaults, by their flat names, of the sections that scheduling depends on."""
    return {
        s.name: value
        for s in all_settings()
        if s.section not in _PRIVATE and s.name not in ("tenants", "cost_model")
        and (value := getattr(getattr(config, s.section), s.name)) != s.default
    }  # fmt: skip


def _tenant(tenant: Tenant) -> dict[str, Any]:
    """Everything but its keys."""
    return {f.name: getattr(tenant, f.name) for f in dataclasses.fields(tenant) if f.name != "keys"}


def open_recording(path: str | Path) -> TextIO:
    """A file for a record, line by line: what is written outlives the process. ConfigError if there is a record in it;
    an empty one is what a server that did not start has left."""
    try:
        if Path(path).exists() and Path(path).stat().st_size:
            raise ConfigError(
                f"record = {str(path)!r} exists: a record is not written over. Give another file; for a server that is "
                'restarted one for each start, --record "day-$(date +%s).jsonl"'
            )
        return open(path, "w", buffering=1)
    except OSError as error:
        raise ConfigError(f"record = {str(path)!r} cannot be written ({error.strerror}): give another file") from error


def record_engine(
    engine: Engine, file: TextIO, config: EngineConfig, tenants: Tenants, *, tokens: bool = False
) -> Recorder:
    """Record an engine that has not been given a request yet, from now on."""
    scheduler = engine.scheduler
    recorder = Recorder(
        file, config, scheduler.blocks.pool.capacity + 1, engine.limits.max_model_len, engine.now,
        tenants=tenants, cost=scheduler.costs.model, machine=machine(), tokens=tokens,
    )  # fmt: skip
    engine.observers.append(recorder)
    return recorder


def machine() -> dict[str, Any]:
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jaxserve": __version__,
    }
