"""Which replica a request goes to. A router knows what a front end knows: what it sent where, and what came back.

    round-robin     one after the other
    least-loaded    the fewest requests under way, then the fewest of their prompt tokens
    prefix          the replica that was sent the longest part of this prompt before, unless it is much busier

`prefix` is SGLang's cache-aware routing (Zheng et al., "SGLang", NeurIPS 2024) on ids of prompt blocks.
"""

from collections import OrderedDict
from typing import Protocol

from jaxserve.core.errors import ConfigError
from jaxserve.sim.arrivals import Arrival

ROUTERS = ("round-robin", "least-loaded", "prefix")
BUSIER = 1.5
"""A replica with this many times the least load, and `BUSIER_BY` requests more, is not sent what it knows."""
BUSIER_BY = 8


class Router(Protocol):
    def choose(self, arrival: Arrival) -> int:
        """The replica's number. The request is sent there."""
        ...

    def ended(self, replica: int, arrival: Arrival) -> None: ...


def make_router(name: str, replicas: int, cached_tokens: int) -> Router:
    """`cached_tokens`: what the prefix cache of one replica can hold at most."""
    match name:
        case "round-robin":
            return RoundRobin(replicas)
        case "least-loaded":
            return LeastLoaded(replicas)
        case "prefix":
            return PrefixAware(replicas, cached_tokens)
        case _:
            raise ConfigError(f"router = {name!r} cannot work: give one of {', '.join(ROUTERS)}")


class RoundRobin:
    def __init__(self, replicas: int) -> None:
        self._replicas, self._last = replicas, -1

    def choose(self, arrival: Arrival) -> int:
        self._last = (self._last + 1) % self._replicas
        return self._last

    def ended(self, replica: int, arrival: Arrival) -> None:
        pass


class LeastLoaded:
    def __init__(self, replicas: int) -> None:
        self._load = [(0, 0)] * replicas  # requests under way, their prompt tokens

    def choose(self, arrival: Arrival) -> int:
        chosen = self._load.index(min(self._load))
        self.sent(chosen, arrival)
        return chosen

    def sent(self, replica: int, arrival: Arrival) -> None:
        requests, tokens = self._load[replica]
        self._load[replica] = requests + 1, tokens + arrival.prompt_tokens

    def ended(self, replica: int, arrival: Arrival) -> None:
        requests, tokens = self._load[replica]
        self._load[replica] = requests - 1, tokens - arrival.prompt_tokens

    def much_busier(self, replica: int) -> bool:
        least, own = min(self._load)[0], self._load[replica][0]
        return own > BUSIER * least and own > least + BUSIER_BY


class PrefixAware:
    def __init__(self, replicas: int, cached_tokens: int) -> None:
        self._loads = LeastLoaded(replicas)
        self._cached_tokens = cached_tokens
        self._sent: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(replicas)]  # block -> its tokens
        self._tokens = [0] * replicas

    def choose(self, arrival: Arrival) -> int:
        known = [self._known(sent, arrival) for sent in self._sent]
        best = max(range(len(known)), key=known.__getitem__)
        if known[best] and not self._loads.much_busier(best):
            self._loads.sent(best, arrival)
        else:
            best = self._loads.choose(arrival)
        self._remember(best, arrival)
        return best

    def ended(self, replica: int, arrival: Arrival) -> None:
        self._loads.ended(replica, arrival)

    def _known(self, sent: OrderedDict[int, int], arrival: Arrival) -> int:
        """Leading blocks that were sent there."""
        for count, block in enumerate(arrival.prefix_blocks):
            if block not in sent:
                return count
        return len(arrival.prefix_blocks)

    def _remember(self, replica: int, arrival: Arrival) -> None:
        """The most recently sent blocks, as many as the replica can hold; of a prompt the last go first."""
        sent = self._sent[replica]
        for block in reversed(arrival.prefix_blocks):
            if block not in sent:
                sent[block] = arrival.block_tokens
                self._tokens[replica] += arrival.block_tokens
            sent.move_to_end(block)
        while self._tokens[replica] > self._cached_tokens:
            self._tokens[replica] -= sent.popitem(last=False)[1]
