"""Ctrl-C between two steps and not within one: in a notebook the engine outlives the cell that was interrupted.

An interrupt is raised wherever Python happens to be. In the middle of a step that is a plan that nobody commits, or a
block that nobody gives back; at its end it is nothing.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def whole() -> Generator[None]:
    """Ctrl-C in this block is raised at its end; a second one at once, where the device hangs, say.

    Only where Ctrl-C would raise KeyboardInterrupt here: in the main thread, and if nobody gave it another meaning.
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
