"""Every block of Python in README and docs runs as it stands, from an empty folder, with a server where it asks one."""

import re
from pathlib import Path

import pytest

import jaxserve
from jaxserve.llm import LLM
from jaxserve.models import registry
from tests.server.conftest import FEW_PROGRAMS, Running

ROOT = Path(__file__).parents[2]
SAID = {
    "README.md": "",
    "docs/http.md": "",
    "docs/python.md": "JULIET:.*Who art thou\\?<.*log-probability: -.*ungated: \\[.*second length",
    "docs/quickstart.md": "",
    "docs/scheduling.md": "",
}
"""A page, and what its blocks print among other things: a regular expression."""


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_no_page_is_left_out() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert {str(page.relative_to(ROOT)) for page in pages if "```python" in page.read_text()} == set(SAID)
    loose = [page.name for page in pages if re.search(r"^    (from \w+ import|client|llm) ", page.read_text(), re.M)]
    assert loose == [], "Python that is not in a block for it, and so not run"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", SAID)
def test_the_python_blocks_run(
    page: str, embedded: Running, compilation_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With fewer programs than a reader's, and on a port of the test's."""
    small = FEW_PROGRAMS | {"compilation_cache_dir": compilation_cache, "progress": False}
    monkeypatch.setattr(jaxserve, "LLM", lambda *model, **more: LLM(*model, **small, **more), raising=False)
    monkeypatch.setitem(registry.MODELS, "UngatedForCausalLM", None)  # type: ignore[arg-type]  # gone afterwards
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks_of(page):
        exec(block.replace("http://127.0.0.1:8000", embedded.url), names)
    printed = capsys.readouterr().out
    assert re.search(SAID[page], printed, re.DOTALL) and (printed or page == "docs/scheduling.md")
