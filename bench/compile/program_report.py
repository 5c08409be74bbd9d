"""What a compiled program takes and does: memory, aliases, copies of the cache, kernels."""

import re
import time
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import jax

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*)$")
_ARRAY = re.compile(r"[a-z0-9]+\[([\d,]+)\]")
_IN_PLACE = {
    "parameter", "get-tuple-element", "bitcast", "tuple", "while", "conditional", "call", "scatter",
    "dynamic-update-slice", "custom-call", "optimization-barrier", "add-dependency",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """Sizes in bytes, times in seconds."""

    name: str
    lower_s: float
    compile_s: float
    arguments: int
    aliased: int
    temporaries: int
    outputs: int
    """Beyond what is aliased."""
    cache_copies: tuple[str, ...] = field(default=())


def compile_and_report(name: str, lower: Any, page_shape: tuple[int, ...] = ()) -> tuple[Any, ProgramReport]:
    """The executable of `lower()`, which gives a `jax.stages.Lowered`, and what it takes.

    `page_shape` is that of one array of the KV cache: every instruction that makes another array of it is reported.
    """
    begin = time.perf_counter()
    lowered = lower()
    between = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return compiled, report(name, compiled, page_shape, between - begin, end - between)


def report(
    name: str, compiled: jax.stages.Compiled, page_shape: tuple[int, ...] = (), lower_s: float = 0, compile_s: float = 0
) -> ProgramReport:
    memory = compiled.memory_analysis()
    return ProgramReport(
        name, lower_s, compile_s,
        arguments=memory.argument_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        cache_copies=tuple(copies_of(page_shape, compiled.as_text() or "")) if page_shape else (),
    )  # fmt: skip


def copies_of(shape: tuple[int, ...], hlo: str) -> list[str]:
    """Instructions of an optimized module that make a new array of as many elements as `shape`: name and opcode.

    What updates in place makes none: a scatter, a dynamic-update-slice, a kernel that aliases its operand, a fusion
    whose result is one of them. (Whether they do update in place is told by the program's temporaries.)
    """
    size, modules, found = prod(shape), _parse(hlo), []
    fused = {i.calls for instructions in modules.values() for i in instructions.values() if i.opcode == "fusion"}
    for name, instructions in modules.items():
        for instruction in instructions.values() if name not in fused else ():
            if size in instruction.sizes:
                made = _results(modules[instruction.calls]) if instruction.opcode == "fusion" else [instruction]
                opcodes = [part.opcode for part in made if size in part.sizes and part.opcode not in _IN_PLACE]
                if instruction.opcode == "fusion":  # a fusion that hands a parameter on has copied it
                    opcodes += [part.opcode for part in made if size in part.sizes and part.opcode == "parameter"]
                found += [f"{instruction.name}: {opcode}" for opcode in opcodes]
    return found


class _Instruction(NamedTuple):
    name: str
    opcode: str
    sizes: frozenset[int]
    """Elements of the array, or of each array of the tuple, that it makes."""
    operands: tuple[str, ...]
    calls: str
    is_root: bool


def _parse(hlo: str) -> dict[str, dict[str, _Instruction]]:
    """Instructions by name, by the computation that they are in."""
    modules: dict[str, dict[str, _Instruction]] = {}
    inside: dict[str, _Instruction] = {}
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            inside = modules.setdefault(head[1], {})
        elif made := _INSTRUCTION.match(line):
            root, name, result, opcode, rest = made.groups()
            sizes = frozenset(prod(map(int, dimensions.split(","))) for dimensions in _ARRAY.findall(result))
            calls = re.search(r"calls=%([^\s,]+)", rest)
            operands = tuple(re.findall(r"%([^\s,()]+)", rest.split("), ")[0])) if opcode == "tuple" else ()
            inside[name] = _Instruction(name, opcode, sizes, operands, calls[1] if calls else "", root is not None)
    return modules


def _results(fusion: dict[str, _Instruction]) -> list[_Instruction]:
    """What makes a fusion's outputs: its root, or the parts of the tuple that its root is."""
    root = next(instruction for instruction in fusion.values() if instruction.is_root)
    parts = [fusion[name] for name in root.operands if name in fusion] if root.opcode == "tuple" else [root]
    return parts or [root]
