"""The collector of garbage, kept out of the steps."""

import gc


def settle_heap() -> None:
    """Let the collector pass over all that lives now: modules, programs, the tokenizer, the engine.

    A full collection stops every thread, in the middle of somebody's tokens: with the 218,000 objects of an engine that
    has just loaded it took 105 ms (2 cores of an EPYC), with those frozen under a millisecond. For a process that
    keeps its engine: a cycle that is frozen while it lives is never freed after it.
    """
    gc.collect()
    gc.freeze()
