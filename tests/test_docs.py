"""Nothing that the code offers is missing from the docs. That what they show runs: `server/test_python_blocks.py`."""

import argparse
import dataclasses
import inspect
import re
from pathlib import Path

from jaxserve.cli import _parser
from jaxserve.core.config import all_settings
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sampling import SamplingParams
from jaxserve.engine.collect import CompletionOutput, RequestOutput
from jaxserve.engine.engine import Engine
from jaxserve.engine.outputs import SequenceMetrics, SequenceOutput
from jaxserve.llm import LLM
from jaxserve.metrics.catalog import METRICS
from jaxserve.metrics.page import page
from jaxserve.server.app import ROUTES
from jaxserve.server.dashboard.routes import PAGE_PATHS
from jaxserve.server.traces import OPERATIONS

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text()
EVERYTHING = "\n".join([README, *DOCS.values()])
ASSETS = PAGE_PATHS - {"/", "/dashboard"}


def words(text: str) -> set[str]:
    """Every word that stands in backquotes or in a block of code."""
    text = re.sub(r"```.*?```", lambda block: block.group().replace("`", " "), text, flags=re.DOTALL)
    return {word for span in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[A-Za-z_][\w]*", span)}


def test_the_index_has_every_page_and_every_link_leads_somewhere() -> None:
    assert [name for name in DOCS if f"docs/{name}" not in README] == []
    for folder, text in [(ROOT, README), *((ROOT / "docs", text) for text in DOCS.values())]:
        for target in re.findall(r"\]\(([^)#]+)\)|<img src=\"([^\"]+)\"", text):
            path = "".join(target)
            assert path.startswith("http") or (folder / path).exists(), path


def test_every_setting_and_metric() -> None:
    assert [s.name for s in all_settings() if f"| `{s.name}` |" not in DOCS["settings.md"]] == []
    shown = {name.removesuffix("_total") for name in re.findall(r"^\| `(\w+)`", DOCS["metrics.md"], re.MULTILINE)}
    assert {name.removesuffix("_total") for name in METRICS} <= shown
    assert DOCS["metrics.md"] == page(), "run python -m jaxserve.metrics.page"


def test_every_route_and_no_other() -> None:
    offered = {
        f"{method} {re.sub(r'{[^}]*}', '{id}', route.path)}"
        for route in ROUTES
        for method in (route.methods or ())
        if method != "HEAD" and route.path not in ASSETS
    }
    table = DOCS["http.md"].split("## Keys")[0]
    assert set(re.findall(r"`((?:GET|POST|DELETE|PUT) /[^ `]*)`", table)) == offered


def test_every_command_of_jaxserve() -> None:
    (commands,) = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert [name for name in commands.choices if f"jaxserve {name}" not in EVERYTHING] == []


def test_every_command_of_bench() -> None:
    """A module that can be run, or a package with a __main__."""
    files = [path for path in (ROOT / "bench").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in files}
    assert len(modules) > 15
    assert sorted(name for name in modules if f"`{name}" not in DOCS["benchmarks.md"]) == []


def test_every_name_of_the_python_api() -> None:
    known = words(DOCS["python.md"])
    for kind in (LLM, Engine):
        names = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
        assert sorted(names - known) == [], kind.__name__
    for kind in (SamplingParams, RequestOutput, CompletionOutput, SequenceOutput, SequenceMetrics, TokenLogprobs):
        fields = {field.name for field in dataclasses.fields(kind)}
        properties = {name for name, value in vars(kind).items() if isinstance(value, property)}
        missing = fields | (properties if kind is not SamplingParams else set())
        assert sorted(missing - known) == [], kind.__name__
    for method in ("__init__", "generate", "chat", "stream", "score", "make_request"):
        assert set(inspect.signature(getattr(LLM, method)).parameters) - {"self"} <= known, method


def test_every_sampling_default_is_the_codes() -> None:
    shown = dict.fromkeys(field.name for field in dataclasses.fields(SamplingParams))
    table = DOCS["python.md"].split("## SamplingParams")[1].split("## What comes back")[0]
    for names, defaults in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", table, re.MULTILINE):
        fields, values = re.findall(r"`(\w+)`", names), defaults.split(", ")
        for field, value in zip(fields, values if len(values) == len(fields) else values * len(fields), strict=True):
            shown[field] = value
    assert shown == {name: str(getattr(SamplingParams(), name)) for name in shown}


def test_every_attribute_of_a_span() -> None:
    from jaxserve.core.sequence import Request
    from jaxserve.server import traces
    from jaxserve.server.context import Call

    call = Call("id", requests=[Request(id="a", prompt=(1,), params=SamplingParams(stop=("x",)))])
    page = DOCS["debugging.md"].split("| attribute | |")[1]
    for name in {*traces._asked(call), *traces._answered(call, "m"), "jaxserve.batch.id", "jaxserve.batch.line"}:
        assert f"`{name}`" in page or f"`.{name.split('.', 2)[-1]}`" in page, name
    assert {"chat", "text_completion"} == set(OPERATIONS.values())
