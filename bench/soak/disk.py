"""A small disk of the soak's own, which it can fill: a tmpfs in a mount namespace that ends with the process.

unshare --mount ... python -m bench.soak     the soak starts itself again in there, where it may mount
mount -t tmpfs -o size=...                   seen by it and its servers, by nobody else
"""

import asyncio
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
INSIDE_VARIABLE = "JAXSERVE_SOAK_NAMESPACE"
SIZE_MB = 48
_NAMESPACES = (
    ("unshare", "--mount", "--propagation", "private"),  # root
    ("unshare", "--user", "--map-root-user", "--mount"),  # others, where the system lets them
)
_PERIOD_S = 0.02
_CHUNK = 1 << 20


def run_inside(module: str, arguments: Sequence[str]) -> int | None:
    """Run `python -m MODULE ARGUMENTS` where it may mount; its exit status. None: it is there already, or may not."""
    if INSIDE_VARIABLE in os.environ or shutil.which("unshare") is None:
        return None
    for namespace in _NAMESPACES:
        trial = [*namespace, "mount", "-t", "tmpfs", "-o", "size=1m", "none", tempfile.gettempdir()]
        if subprocess.run(trial, capture_output=True).returncode == 0:
            command = [*namespace, sys.executable, "-m", module, *arguments]
            return subprocess.call(command, cwd=ROOT, env=os.environ | {INSIDE_VARIABLE: "1"})
    return None


class Disk:
    """`folder`, which can be filled if it is a small filesystem of its own (`can_fill`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.can_fill = INSIDE_VARIABLE in os.environ
        folder.mkdir(parents=True, exist_ok=True)
        if self.can_fill:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(folder)], check=True)
        self._ballast = folder / "ballast"
        self.full = False
        self.times = 0
        self.seconds = 0.0

    def close(self) -> None:
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    async def fill(self, seconds: float) -> None:
        """Take every byte that is free, and what others give back, for so long; then give all of it back."""
        self.full, began = True, time.monotonic()
        self.times += 1
        try:
            with open(self._ballast, "ab", buffering=0) as ballast:
                while time.monotonic() < began + seconds:
                    _take_all(ballast.fileno())
                    await asyncio.sleep(_PERIOD_S * random.uniform(0.5, 1.5))
        finally:
            self._ballast.unlink()
            self.seconds += time.monotonic() - began
            self.full = False


def _take_all(file: int) -> None:
    size = _CHUNK
    while size:
        try:
            os.write(file, b"\0" * size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 2
