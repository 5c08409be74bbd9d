"""Imports point to lower floors only, and the host side never loads JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxserve

ROOT = Path(__file__).parent.parent
HOST = [{"core"}, {"costs", "cache", "text"}, {"sched"}, {"metrics"}, {"engine"}, {"sim", "batches"}, {"tune"}]
"""The host wing, lowest floor first: it never loads JAX."""
DEVICE = [{"core"}, {"parallel", "models"}, {"checkpoints", "runtime"}]
"""The device wing. The two wings share `core`, and meet in `assembly` only."""
HALL = [{"assembly"}, {"llm"}, {"server"}, {"commands"}, {"cli"}, {"__main__"}]
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "orbax", "starlette", "uvicorn"}


def below(module: str) -> set[str]:
    """What a module of this package or file may import: the floors under its own, of its own wing."""
    for wing in (HOST, DEVICE):
        for i, floor in enumerate(wing):
            if module in floor:
                return set().union(*wing[:i])
    i = next(i for i, floor in enumerate(HALL) if module in floor)
    return set().union(*HOST, *DEVICE, *HALL[:i])


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return [
        path
        for path in sorted((ROOT / "jaxserve").rglob("*.py"))
        if path.parent.name != "jaxserve" or path.stem != "__init__"
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "jaxserve").parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jaxserve" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] == own or parts[1] in below(own), f"{own} imports {name}"
        if own in set().union(*HOST):
            assert parts[0] not in DEVICE_LIBRARIES | {"kernels_pallas"}, f"{own} imports {name}"
        assert parts[0] not in ("tests", "bench")


IN_ANOTHER_PROCESS = ("engine.engine", "engine.loop", "engine.thread", "sched", "cache", "runtime", "assembly", "llm")
"""What an engine's client may have on its other side."""


@pytest.mark.parametrize("path", sorted((ROOT / "jaxserve/server").rglob("*.py")), ids=lambda path: path.name)
def test_the_server_knows_an_engine_by_its_client(path: Path) -> None:
    if path.name == "serve.py":  # it wires an engine of its own process
        return
    for name in imports(path):
        inner = name.removeprefix("jaxserve.")
        assert not any(inner == far or inner.startswith(far + ".") for far in IN_ANOTHER_PROCESS), name
        assert name not in ("jaxserve.core.sequence.Sequence", "jaxserve.core.plan.StepPlan"), name


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions count: they hide a circle and do not open it."""
    known = {module_of(path): imports(path) for path in (ROOT / "jaxserve").rglob("*.py")}
    left: dict[str, set[str]] = {}
    for name, found in known.items():
        modules = found & known.keys()
        packages = {inner.rpartition(".")[0] for inner in modules}  # a package is not needed for its module's sake
        left[name] = modules - packages - {name, "jaxserve"}
    while free := [name for name, found in left.items() if not found & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"imports in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels_pallas").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_know_nothing_of_jaxserve(path: Path) -> None:
    assert not any(name.split(".")[0] == "jaxserve" for name in imports(path))


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_the_host_side_loads_no_jax() -> None:
    statement = "import jaxserve.engine.loop, jaxserve.engine.collect, jaxserve.sim.simulate"
    assert not loaded_after(statement) & DEVICE_LIBRARIES


def test_names_that_are_loaded_late_are_listed() -> None:
    assert {"LLM", "SamplingParams"} <= set(dir(jaxserve))


def test_the_engine_loads_no_server() -> None:
    assert not loaded_after("import jaxserve.llm") & {"starlette", "uvicorn"}
