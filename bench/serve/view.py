"""What happens while a load runs, redrawn in place twice a second on a terminal; silent elsewhere."""

import asyncio
import shutil
import sys
import time
from collections import deque

from bench.serve.answer import Answer
from jaxserve.metrics.summary import Summary

_BARS = " ▁▂▃▄▅▆▇█"


class LiveView:
    """Use as an async context manager; `watch` goes to `run_load`."""

    def __init__(self, name: str, total: int | None, summary: Summary, show: bool | None = None) -> None:
        self._name, self._total, self._summary = name, total, summary
        self._show = sys.stderr.isatty() if show is None else show
        self._begin = time.monotonic()
        self._open = self._tokens = self._lines = 0
        self._rates: deque[float] = deque(maxlen=60)

    def watch(self, answer: Answer, what: str) -> None:
        self._open += 1 if what == "sent" else -1
        if what == "ended":
            self._summary.add(answer)
            self._tokens += len(answer.token_s)

    async def __aenter__(self) -> "LiveView":
        self._task = asyncio.create_task(self._draw()) if self._show else None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            self._write(self.text())

    async def _draw(self) -> None:
        seen = 0
        while True:
            await asyncio.sleep(0.5)
            self._rates.append(2.0 * (self._tokens - seen))
            seen = self._tokens
            self._write(self.text())

    def text(self) -> str:
        group = self._summary.all
        elapsed = time.monotonic() - self._begin
        of = f" of {self._total}" if self._total is not None else ""
        lines = [
            f"{self._name}  {elapsed:.0f} s",
            f"  done {group.completed}{of}, open {self._open}, refused {group.refused.total()}, failed {group.failed}",
            f"  output tokens/s {self._tokens / max(elapsed, 1e-9):,.0f}  {sparkline(self._rates)}",
        ]
        for name in ("ttft", "tpot", "itl"):
            p50, p90, p99 = group.distribution(name).percentiles((50, 90, 99))
            lines.append(f"  {name.upper():5s} ms   p50 {1e3 * p50:8.1f}   p90 {1e3 * p90:8.1f}   p99 {1e3 * p99:8.1f}")
        return "\n".join(lines)

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in text.split("\n")]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        sys.stderr.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        sys.stderr.flush()
        self._lines = len(lines)


def sparkline(values: "deque[float] | list[float]") -> str:
    most = max(values, default=0.0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] if most else " " for value in values)
