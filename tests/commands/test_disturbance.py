"""What others used of the processors while something was timed."""

import os
import time
from pathlib import Path

import pytest

from jaxserve.commands.disturbance import Disturbance

IDLE_AND_WAITING = 12345


def stat(path: Path, busy_s: float) -> None:
    ticks = int(busy_s * os.sysconf("SC_CLK_TCK"))
    path.write_text(f"cpu  {ticks} 0 0 {IDLE_AND_WAITING} {IDLE_AND_WAITING} 0 0 0 0 0\ncpu0 1 2 3\n")


def test_what_this_process_did_not_use_others_did(tmp_path: Path) -> None:
    stat(tmp_path / "stat", 100.0)
    began, own = time.monotonic(), sum(os.times()[:4])
    disturbance = Disturbance(tmp_path / "stat")
    while sum(os.times()[:4]) - own < 0.3:
        pass
    stat(tmp_path / "stat", 101.0)
    share = disturbance.share()
    elapsed, own = time.monotonic() - began, sum(os.times()[:4]) - own
    assert share is not None and share == pytest.approx((1.0 - own) / elapsed / (os.cpu_count() or 1), rel=0.3)


def test_systems_that_do_not_say(tmp_path: Path) -> None:
    assert Disturbance(tmp_path / "none").share() is None
