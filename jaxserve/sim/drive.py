"""Feeds an engine a list of arrivals, at their times, and yields what became of each.

The same loop drives a simulated engine on a virtual clock and a real one on the machine's: both clocks can wait.
Arrivals are read one by one and requests that ended are let go, so that a long list needs little memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from jaxserve.core.clock import Clock
from jaxserve.core.errors import InvalidRequest, TooBusy
from jaxserve.core.sequence import Sequence
from jaxserve.engine.engine import Engine
from jaxserve.sim.arrivals import Arrival

Prompts = Callable[[Arrival, int], tuple[int, ...]]
"""(arrival, its number) -> prompt tokens."""


@dataclass(slots=True)
class Served:
    """What became of an arrival. Times are seconds since the drive began."""

    number: int
    arrival: Arrival
    token_s: list[float] = field(default_factory=list[float])
    """When each output token was known."""
    refused: str = ""
    """Why it was not taken: "queue_full", "rate_limit", "slo", or what is wrong with it."""
    failed: str = ""
    """A step failed, or it was aborted."""
    preemptions: int = 0
    cached_tokens: int = 0
    first_scheduled_s: float | None = None

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.arrival.at_s

    @property
    def tpot_s(self) -> float:
        """Mean time between output tokens; 0 for an only one."""
        return (self.token_s[-1] - self.token_s[0]) / max(len(self.token_s) - 1, 1)

    @property
    def e2e_s(self) -> float:
        return self.token_s[-1] - self.arrival.at_s


def same_token(arrival: Arrival, number: int) -> tuple[int, ...]:
    """Prompts of the right length and no content: for engines that share no prefixes."""
    return (0,) * arrival.prompt_tokens


def drive(engine: Engine, clock: Clock, arrivals: Iterable[Arrival], prompts: Prompts = same_token) -> Iterator[Served]:
    """Add each arrival at its time, step while there is work, and yield each as it ends or is refused.

    `arrivals` in order of time, counted from now. A policy that waits for company knows when the last one has come.
    """
    start_s = clock.now()
    live: dict[str, tuple[Served, Sequence]] = {}
    coming = enumerate(arrivals)
    head = next(coming, None)
    while head is not None or engine.has_work:
        while head is not None and start_s + head[1].at_s <= clock.now():
            served, sequence = _offer(engine, head[0], head[1], prompts, start_s)
            if sequence is None:
                yield served
            else:
                live[sequence.request.id] = served, sequence
            head = next(coming, None)
        engine.expects_more = head is not None
        if not engine.has_work:
            if head is not None:
                clock.sleep_until(start_s + head[1].at_s)
            continue
        outputs = engine.step()
        now = clock.now() - start_s
        for output in outputs:
            served, sequence = live[output.request_id]
            served.token_s.extend([now] * len(output.tokens))
            if output.finish_reason is not None:
                del live[output.request_id]
                yield _ended(served, sequence, start_s, output.error)
        if engine.idle and engine.has_work:
            times = [at for at in (engine.wake_s, head and start_s + head[1].at_s) if at is not None]
            assert times, "the engine has work that nothing will start"
            clock.sleep_until(min(times))


def _offer(
    engine: Engine, number: int, arrival: Arrival, prompts: Prompts, start_s: float
) -> tuple[Served, Sequence | None]:
    served = Served(number, arrival)
    try:
        sequences = engine.add(arrival.request(str(number), prompts(arrival, number), start_s))
    except TooBusy as error:
        served.refused = error.reason
    except InvalidRequest as error:
        served.refused = str(error)
    else:
        return served, sequences[0]
    return served, None


def _ended(served: Served, sequence: Sequence, start_s: float, error: str | None) -> Served:
    served.preemptions, served.cached_tokens = sequence.preemptions, sequence.num_cached
    if sequence.first_scheduled_s is not None:
        served.first_scheduled_s = sequence.first_scheduled_s - start_s
    served.failed = error or ("" if len(served.token_s) == served.arrival.output_tokens else "cut short")
    return served
