"""The server under test: a process of its own, and what the system knows of it. Linux only, by /proc."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.soak.wire import ask, message

ROOT = Path(__file__).parent.parent.parent
SETTINGS = (
    "--max-num-seqs=8", "--max-num-batched-tokens=128", "--decode-buckets=8", "--prefill-buckets=128",
    "--mixed-decode-buckets=8", "--prefill-rows=4", "--num-blocks=20", "--offload-disk-bytes=16000000",
    "--max-waiting=32", "--max-open-requests=64",
    "--max-connections=256", "--max-stream-backlog=512", "--receive-timeout-s=3", "--write-timeout-s=3",
    "--keep-alive-s=5", "--drain-timeout-s=20", "--batch-concurrency=6",
)  # fmt: skip
"""Small bounds, so that they are met: 8 run, 32 wait, 64 calls are open, and blocks run out: preempted sequences go to
the disk."""


@dataclass(frozen=True)
class Held:
    """What an idle server holds."""

    rss_mb: float
    files: int
    sockets: int


class Process:
    """One life of the server."""

    def __init__(self, log: Path, disk: Path, options: Sequence[str]) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self._log = open(log, "ab")  # noqa: SIM115 - closed with the process
        command = [
            sys.executable,
            "-m",
            "jaxserve",
            "serve",
            f"--port={self.port}",
            f"--batch-dir={disk / 'batches'}",
            f"--offload-disk-dir={disk / 'kv'}",
        ]
        self._process = subprocess.Popen(
            [*command, *SETTINGS, *options],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=self._log,
            stderr=self._log,
        )

    async def wait_until_ready(self) -> None:
        for _ in range(2400):
            if self._process.poll() is not None:
                raise RuntimeError(f"the server has ended with {self._process.returncode}: see {self._log.name}")
            try:
                if (await ask(self.port, message("GET", "/ready"))).status == 200:
                    return
            except (OSError, EOFError):
                pass
            await asyncio.sleep(0.05)
        raise RuntimeError("the server does not become ready")

    def kill(self) -> None:
        """kill -9: no code of the server's runs any more."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    async def terminate(self) -> int:
        """SIGTERM; the exit status, or the signal that had to end it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, 40)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            self.kill()

    async def metrics(self) -> str:
        return (await ask(self.port, message("GET", "/metrics"))).body.decode()

    async def wait_until_idle(self) -> str:
        """What is still held after half a minute without work; empty: nothing."""
        held = "?"
        for _ in range(300):
            held = "; ".join(f"{name} {value:g}" for name, value in busy(await self.metrics()).items() if value)
            if not held:
                return ""
            await asyncio.sleep(0.1)
        return held

    def held(self) -> Held:
        folder = Path(f"/proc/{self._process.pid}")
        found = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
        assert found is not None
        links: list[str] = []
        for entry in (folder / "fd").iterdir():
            try:
                links.append(os.readlink(entry))
            except FileNotFoundError:  # closed meanwhile
                continue
        sockets = sum(link.startswith("socket:") for link in links)
        return Held(int(found[1]) / 1024, len(links) - sockets, sockets)


def busy(metrics: str) -> dict[str, float]:
    """Of a scrape, what an idle server has none of: sequences, blocks that somebody holds, open calls."""
    sought = {"running": "num_requests_running", "waiting": "num_requests_waiting", "open calls": "http_requests_open"}
    found = {label: total(metrics, metric) for label, metric in sought.items()}
    found["blocks"] = total(metrics, "kv_blocks", 'state="used"') + total(metrics, "kv_blocks", 'state="shared"')
    found["blocks on the disk"] = total(metrics, "tier_blocks", 'tier="disk"')
    return found


def total(metrics: str, name: str, label: str = "") -> float:
    """Of a scrape, the sum of a metric's samples that have the label."""
    samples = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith(f"jaxserve_{name}{{")]
    return sum(float(value) for named, value in samples if label in named)
