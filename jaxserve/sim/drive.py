"""Feeds engines a source of requests, at their times, and yields what became of each.

The same loop drives a simulated engine on a virtual clock, several of them behind a router, and a real one on the
machine's clock: all clocks can wait. Requests are read one by one and let go when they have ended, so that a long list
needs little memory.

    source    a    b       c             taken by the first lane whose clock has passed them, as an engine's loop
    lane 0    |--step--|--step--|        looks at its queue between two steps
    lane 1      |----step----|--step--|  the lane that is furthest behind goes first
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from jaxserve.core.clock import Clock
from jaxserve.core.errors import InvalidRequest, TooBusy
from jaxserve.core.sequence import FinishReason
from jaxserve.engine.engine import Engine
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.metrics.latency import e2e_s, tpot_s, ttft_s
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.gauges import Gauges
from jaxserve.sim.routers import RoundRobin, Router
from jaxserve.sim.sources import OpenLoop, Source

Prompts = Callable[[Arrival, int], tuple[int, ...]]
"""(arrival, its number) -> prompt tokens."""
_HALF = 1 << 30


@dataclass(slots=True)
class Served:
    """What became of an arrival: a `metrics.latency.Measured`. Times are seconds since the drive began.

    An arrival of several completions has one for each; if it is refused, it has one.
    """

    number: int
    arrival: Arrival
    token_s: list[float] = field(default_factory=list[float])
    """When each output token was known."""
    refused: str = ""
    """Why it was not taken: "queue_full", "rate_limit", "slo" or "cannot_fit"; `why` says more."""
    failed: str = ""
    """A step failed, or it was "aborted"."""
    why: str = ""
    preemptions: int = 0
    cached_tokens: int = 0
    first_scheduled_s: float | None = None
    replica: int = 0
    predicted_ttft_s: float = 0.0
    """What the scheduler forecast when it came, and what 9 of 10 such forecasts stay within; 0: nothing."""
    predicted_p90_s: float = 0.0
    index: int = 0
    """Which of the arrival's completions this is."""
    last: bool = True
    """No completion of the arrival is still under way."""

    @property
    def arrival_s(self) -> float:
        return self.arrival.at_s

    @property
    def tenant(self) -> str:
        return self.arrival.tenant

    @property
    def prompt_tokens(self) -> int:
        return self.arrival.prompt_tokens

    @property
    def ttft_s(self) -> float:
        return ttft_s(self.arrival.at_s, self.token_s)

    @property
    def tpot_s(self) -> float:
        """Mean time between output tokens; 0 for an only one."""
        return tpot_s(self.token_s) or 0.0

    @property
    def e2e_s(self) -> float:
        return e2e_s(self.arrival.at_s, self.token_s)


def made_up(arrival: Arrival, number: int) -> tuple[int, ...]:
    """A prompt of the right length that shares with others what its `prefix_blocks` say, and nothing else."""
    tokens: list[int] = []
    for block in arrival.prefix_blocks:
        tokens += [block % _HALF] * arrival.block_tokens
    tokens += [_HALF + number % _HALF] * (arrival.prompt_tokens - len(tokens))
    return tuple(tokens[: arrival.prompt_tokens])


def drive(
    engine: Engine, clock: Clock, arrivals: Iterable[Arrival] | Source, prompts: Prompts = made_up
) -> Iterator[Served]:
    """Add each arrival at its time, step while there is work, and yield each as it ends or is refused.

    `arrivals` in order of time, counted from now. A policy that waits for company knows when the last one has come.
    """
    source = OpenLoop(arrivals) if isinstance(arrivals, Iterable) else arrivals
    return drive_lanes([Lane(engine, clock, prompts)], source)


def drive_lanes(lanes: list["Lane"], source: Source, router: Router | None = None) -> Iterator[Served]:
    """The same for several engines on virtual clocks that show the same time now; `router` says who gets what."""
    router = router or RoundRobin(len(lanes))
    told: list[tuple[float, int, int, Arrival]] = []  # ends that the router has yet to hear of, in order of time
    while True:
        lane = lanes[0] if len(lanes) == 1 else min(lanes, key=_next_s)
        at_s, lane_s = source.next_s, lane.next_s
        if at_s is not None and at_s <= lane_s:
            number, arrival = source.take()
            while told and told[0][0] <= at_s:
                _, _, index, old = heapq.heappop(told)
                router.ended(index, old)
            index = router.choose(arrival)
            refused = lanes[index].take(number, arrival)
            for other in lanes:
                other.expect(source.more, at_s)
            ended = [refused] if refused is not None else []
        elif lane_s < math.inf:
            index = lanes.index(lane)
            ended = lane.step()
        elif any(other.engine.has_work for other in lanes):
            raise AssertionError("an engine has work that nothing will start")
        else:
            return
        for served in ended:
            served.replica = index
            if served.last:
                ended_s = served.token_s[-1] if served.token_s and not served.failed else lanes[index].now_s
                heapq.heappush(told, (ended_s, served.number, index, served.arrival))
                source.ended(ended_s, served.number)
            yield served


class Lane:
    """One engine, its clock, and the requests it holds. Times are seconds since the lane was made."""

    def __init__(self, engine: Engine, clock: Clock, prompts: Prompts = made_up, gauges: Gauges | None = None) -> None:
        self.engine = engine
        self._clock, self._prompts, self._gauges = clock, prompts, gauges
        self._start_s = clock.now()
        self._live: dict[str, dict[int, Served]] = {}  # by request, then by completion
        self._leaving: list[tuple[float, str]] = []  # (when its caller closes the stream, request), a heap
        self._asleep = False

    @property
    def now_s(self) -> float:
        return self._clock.now() - self._start_s

    @property
    def next_s(self) -> float:
        """When it has something to do, if nothing comes before; infinity: not at all."""
        if not self.engine.has_work:
            return math.inf
        if not self._asleep:
            return self.now_s
        wake_s = self.engine.wake_s
        wake_s = math.inf if wake_s is None else wake_s - self._start_s
        leaves_s = self._leaving[0][0] if self._leaving else math.inf
        return max(min(wake_s, leaves_s), self.now_s)

    def expect(self, more: bool, at_s: float) -> None:
        """Say at `at_s` whether more requests may come; who waited for company thinks again when there is none."""
        if self.engine.expects_more and not more and self._asleep:
            self._wait_until(at_s)
            self._asleep = False
        self.engine.expects_more = more

    def take(self, number: int, arrival: Arrival) -> Served | None:
        """Give the engine a request, at its time or later; returned at once if it is refused."""
        self._wait_until(arrival.at_s)
        self._asleep = False
        served = Served(number, arrival)
        try:
            self.engine.limits.check_length(arrival.prompt_tokens)  # before a prompt of that length is made
            request = arrival.request(str(number), self._prompts(arrival, number), self._start_s)
            self.engine.add(request)
        except TooBusy as error:
            served.refused, served.why = error.reason, str(error)
            return served
        except InvalidRequest as error:
            served.refused, served.why = "cannot_fit", str(error)
            return served
        self._live[request.id] = {index: Served(number, arrival, index=index) for index in range(arrival.n)}
        if arrival.abort_s is not None:
            heapq.heappush(self._leaving, (arrival.at_s + arrival.abort_s, request.id))
        return None

    def step(self) -> list[Served]:
        """One step of the engine, when it has something to do; returns the requests that ended."""
        if self._asleep:
            self._wait_until(self.next_s)
        self._abort_due()
        began_s = self.now_s
        outputs = self.engine.step()
        now_s = self.now_s
        self._asleep = self.engine.idle
        ended: list[Served] = []
        tokens = 0
        for output in outputs:
            siblings = self._live[output.request_id]
            served = siblings[output.index]
            count = len(output.tokens)
            tokens += count
            if count == 1:
                served.token_s.append(now_s)
            else:
                served.token_s.extend([now_s] * count)
            if output.finish_reason is not None:
                del siblings[output.index]
                ended.append(self._ended(served, output, last=not siblings))
                if not siblings:
                    del self._live[output.request_id]
            elif served.arrival.abort_tokens is not None and len(served.token_s) >= served.arrival.abort_tokens:
                self.engine.abort(output.request_id)
        if self._gauges is not None:
            scheduler = self.engine.scheduler
            self._gauges.sample(
                now_s, now_s - began_s, scheduler.num_running, scheduler.num_waiting, scheduler.blocks.usage, tokens
            )
        return ended

    def _abort_due(self) -> None:
        """End the requests whose callers have closed their streams by now."""
        now_s = self.now_s
        while self._leaving and self._leaving[0][0] <= now_s:
            self.engine.abort(heapq.heappop(self._leaving)[1])

    def _wait_until(self, at_s: float) -> None:
        self._clock.sleep_until(self._start_s + at_s)

    def _ended(self, served: Served, output: SequenceOutput, last: bool) -> Served:
        metrics = output.metrics
        assert metrics is not None, "the last output of a sequence brings its metrics"
        served.predicted_ttft_s, served.predicted_p90_s = metrics.predicted_ttft_s, metrics.predicted_p90_s
        served.preemptions, served.cached_tokens = metrics.preemptions, metrics.cached_tokens
        if metrics.first_scheduled_s is not None:
            served.first_scheduled_s = metrics.first_scheduled_s - self._start_s
        if output.finish_reason is FinishReason.ABORT:
            served.failed = "aborted"
        else:
            whole = len(served.token_s) == served.arrival.output_tokens
            served.failed = output.error or ("" if whole else "cut short")
        served.last = last
        return served


def _next_s(lane: Lane) -> float:
    return lane.next_s
