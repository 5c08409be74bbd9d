"""Each field of a sequence is written by the classes that `core.sequence` names: all assignments are found here."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import jaxserve
from jaxserve.core.sequence import Sequence

PACKAGE = Path(jaxserve.__file__).parent
SCHEDULER, ROSTER, PACKER = "sched/scheduler.py", "sched/roster.py", "sched/packer.py"
FIELDS: list[tuple[str, set[str]]] = [
    ("request index seed stop_ids decode_wants", set()),
    ("tokens arrival queued_s first_token_s", {SCHEDULER}),
    ("status slot preemptions num_cached first_scheduled_s finish_reason finished_s", {ROSTER}),
    ("num_computed decoding", {PACKER, ROSTER}),
    ("num_pending", {PACKER, SCHEDULER}),
    ("blocks num_registered", {"cache/block_manager.py"}),
    ("hashes", {"cache/prefix_cache.py"}),
    (
        "tenant priority ttft_slo_s tpot_slo_s promised_ttft_s promised_tpot_s prefix_scope booked_blocks max_len",
        {"sched/tenant_ledger.py"},
    ),
    ("booked_tokens", {"sched/tenant_limits.py"}),
    ("forecast", {"sched/ttft_forecasts.py"}),
    ("num_charged", {"sched/orderings/fair.py"}),
]
WRITERS = {name: writers for names, writers in FIELDS for name in names.split()}
OTHERS = {"self", "served", "metrics", "found", "account", "output", "completion", "place", "stretch", "session"}
"""Names of objects that are no sequences and have fields of the same names."""
CHANGES = {"append", "extend", "insert", "pop", "remove", "clear"}
"""Methods that change a list."""


def writes(path: Path) -> Iterator[tuple[str, str]]:
    """(object, field) of every assignment to an attribute with the name of a field, and of every change of a list."""
    known = {field.name for field in fields(Sequence)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and node.attr in known:
            yield ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            if isinstance(node.value, ast.Attribute) and node.value.attr in known:
                yield ast.unparse(node.value.value), node.value.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            changed = node.func.value
            if isinstance(changed, ast.Attribute) and changed.attr in known:
                yield ast.unparse(changed.value), changed.attr


def test_every_field_is_written_where_the_table_says() -> None:
    assert set(WRITERS) == {field.name for field in fields(Sequence)}
    found: dict[str, set[str]] = {name: set() for name in WRITERS}
    for folder in ("core", "cache", "costs", "sched", "engine", "sim", "metrics", "batches"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for owner, name in writes(path):
                if owner.split(".")[0].split("(")[0] not in OTHERS and path.name != "sequence.py":
                    found[name].add(path.relative_to(PACKAGE).as_posix())
    found["hashes"].add("cache/prefix_cache.py")  # it appends to the list under a name of its own
    assert found == WRITERS
