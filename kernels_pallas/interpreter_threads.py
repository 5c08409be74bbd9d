"""Threads for the interpreter of Mosaic GPU kernels, asked for before JAX is loaded: this module does not load it."""

import os

INTERPRETER_THREADS = 8
"""Enough threads of XLA's CPU client for the warpgroups of an interpreted kernel, and for what they wait for."""


def make_room_for_interpreter() -> None:
    """Ask for the interpreter's threads; before JAX's CPU client is made, which has one a core otherwise.

    Each warpgroup of an interpreted kernel is a program of that client, and one that waits at a barrier keeps a thread.
    On two cores two of them can wait for a third that gets none: forever, now and then.
    """
    os.environ.setdefault("PJRT_NPROC", str(INTERPRETER_THREADS))


def threads_of_the_client() -> int:
    """How many the client has, or is going to have."""
    return int(os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or os.cpu_count() or 1)
