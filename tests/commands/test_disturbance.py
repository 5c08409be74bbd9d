"""What others used of the processors while something was timed."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxserve.commands import disturbance
from jaxserve.commands.disturbance import Disturbance

IDLE_AND_WAITING = 12345


def stat(path: Path, busy_s: float) -> None:
    ticks = int(busy_s * os.sysconf("SC_CLK_TCK"))
    path.write_text(f"cpu  {ticks} 0 0 {IDLE_AND_WAITING} {IDLE_AND_WAITING} 0 0 0 0 0\ncpu0 1 2 3\n")


def test_what_this_process_did_not_use_others_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half a second of 4 processors 1 second was worked, 0.4 of it by this process."""
    monkeypatch.setattr(disturbance, "time", SimpleNamespace(monotonic=iter([7.0, 7.5]).__next__))
    monkeypatch.setattr(disturbance, "_own_s", iter([30.0, 30.4]).__next__)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    stat(tmp_path / "stat", 100.0)
    counted = Disturbance(tmp_path / "stat")
    stat(tmp_path / "stat", 101.0)
    assert counted.share() == pytest.approx(0.6 / (4 * 0.5))


def test_this_process_is_known_by_its_processor_time() -> None:
    before, began = disturbance._own_s(), time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert disturbance._own_s() - before >= 0.08, "in ticks of 0.01 s"


def test_systems_that_do_not_say(tmp_path: Path) -> None:
    assert Disturbance(tmp_path / "none").share() is None
