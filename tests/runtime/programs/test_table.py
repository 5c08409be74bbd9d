"""Programs compiled in the background: as long as somebody can use them, and never across the process's end."""

import gc
import subprocess
import sys
import threading

from jaxserve.runtime.programs.table import ProgramTable, compile_in_background


def test_what_is_missing_is_built_once() -> None:
    built: list[str] = []
    table = ProgramTable(lambda key: built.append(key) or key.upper(), threads=1)
    table.compile(["b"])
    compile_in_background([(table, "a"), (table, "b"), (table, "c")]).join()
    assert built == ["b", "a", "c"] and table["c"] == "C"


def test_it_ends_when_its_tables_are_gone() -> None:
    """Or a deleted engine's weights would stay until its last program is there."""
    began, go_on, built = threading.Event(), threading.Event(), []

    def build(key: str) -> str:
        built.append(key)
        began.set()
        assert go_on.wait(60)
        return key

    table = ProgramTable(build, threads=1)
    thread = compile_in_background([(table, "a"), (table, "b"), (table, "c")])
    assert began.wait(60)
    del table
    go_on.set()
    thread.join(60)
    gc.collect()
    assert not thread.is_alive() and built == ["a"]


def test_the_process_waits_for_the_one_under_way_and_no_more() -> None:
    script = """
import time
from jaxserve.runtime.programs.table import ProgramTable, compile_in_background

def build(key):
    print("began", key, flush=True)
    time.sleep(1.0)
    print("built", key, flush=True)

table = ProgramTable(build, threads=1)
compile_in_background([(table, key) for key in "abc"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.split("\n")[:-1]) == (0, ["began a", "built a"]), ended.stderr
