"""Ctrl-C between two steps and not within one: in a notebook the engine outlives the cell that was interrupted.

An interrupt is raised wherever Python happens to be. In the middle of a step it would leave a plan without its commit,
or lose a block; at the end of a step it does no harm.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def deferred_sigint() -> Generator[None]:
    """Raise Ctrl-C in this block at its end; a second one at once, for a device that hangs.

    It defers only what would raise KeyboardInterrupt here: in the main thread, without a signal handler of the caller.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked = False

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt
