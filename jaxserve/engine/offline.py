"""An engine driven by whoever waits for it, in the caller's own thread: `LLM.generate` and `LLM.stream`.

A step brings outputs for everybody. What is another's goes back to the engine, whose next step returns it again: so two
streams can be read in turn, one call can be made inside the loop of another, and what was added by hand is there for
whoever steps by hand.

    stream a   step -> [a1, b1]   a1 out, b1 back
    stream b                      step -> [b1, a2, b2]   b1, b2 out, a2 back
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from jaxserve.core.errors import JaxserveError
from jaxserve.core.sequence import Request
from jaxserve.engine.engine import Engine
from jaxserve.engine.interrupts import deferred_sigint
from jaxserve.engine.outputs import SequenceOutput


def run(engine: Engine, requests: Sequence[Request]) -> Iterator[SequenceOutput]:
    """The outputs of these requests as they come. Leaving early, by Ctrl-C too, aborts what has not ended.

    Requests are queued as there is room: there may be more of them than may wait at once.

    Raises:
      InvalidRequest: one of them can never be served; nothing was queued.
    """
    for request in requests:
        engine.check(request)
    left = deque(requests)
    open_: dict[str, int] = {}  # sequences that have not ended
    try:
        while left or open_:
            while left and (_has_room(engine, left[0]) or not engine.scheduler.num_waiting):
                request = left.popleft()
                with deferred_sigint():
                    engine.add(request)
                    open_[request.id] = request.params.n
            for output in _own(engine, open_):
                if output.finish_reason is not None:
                    open_[output.request_id] -= 1
                    if not open_[output.request_id]:
                        del open_[output.request_id]
                yield output
    finally:
        for request_id in open_:
            engine.abort(request_id)
        if open_:
            _own(engine, open_)
        while engine.under_way and not engine.scheduler.live():  # the step in excess, of the overlapped loop
            _own(engine, ())


def _has_room(engine: Engine, request: Request) -> bool:
    count = request.params.n
    return engine.scheduler.bounds.have_room(request.tenant, count, count * len(request.prompt))


def _own(engine: Engine, ids: Collection[str]) -> list[SequenceOutput]:
    """What the next step brings for these requests; the rest goes back."""
    busy = engine.under_way
    with deferred_sigint():
        outputs = engine.step()
        engine.give_back([output for output in outputs if output.request_id not in ids])
    own = [output for output in outputs if output.request_id in ids]
    if ids and not own and not busy:
        raise JaxserveError(
            "the outputs of this request went to another that stepped the engine: step by hand, or call generate and "
            "stream, but not the one while the other has not ended"
        )
    return own
