"""Decisions as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    steps       one slice a step: its bucket, how full it was, what waited and why, what was preempted at what prices
    requests    a track each: queued, prefill with its chunks, decode, preempted and to where
    pool        counters: KV blocks held, cached and free; blocks in host memory and on the disk; who waits for what

Format: "Trace Event Format", Google, 2016: complete events (X), instants (i), counters (C), metadata (M); times in
microseconds, from the first step on.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from jaxserve.core.decisions import ENDED, PREFILL, Change, Chunk, Decision, Part

STEPS, REQUESTS, POOL = 1, 2, 3
"""Process ids of the three groups of tracks."""

Event = dict[str, Any]


def chrome_trace(decisions: Iterable[Decision]) -> dict[str, Any]:
    """The trace as a JSON object."""
    drawn = _Drawing(list(decisions))
    return {"traceEvents": drawn.events(), "displayTimeUnit": "ms"}


class _Drawing:
    def __init__(self, decisions: list[Decision]) -> None:
        self._decisions = decisions
        changes = [change.at_s for decision in decisions for change in decision.changes]
        self._origin_s = min([decision.planned_s for decision in decisions[:1]] + changes, default=0.0)
        ends = [decision.ended_s or decision.planned_s for decision in decisions]
        self._end_s = max(ends + changes, default=0.0)
        self._tracks: dict[str, int] = {}
        self._open: dict[str, tuple[float, Part]] = {}
        self._fates: dict[str, str] = {}
        self._edges: dict[str, list[float]] = {}
        """When each sequence changed its part."""

    def events(self) -> list[Event]:
        events = [_name(STEPS, "steps"), _name(REQUESTS, "requests"), _name(POOL, "pool")]
        for decision, (begin_s, end_s) in zip(self._decisions, self._spans(), strict=True):
            events.append(self._step(decision, begin_s, end_s))
            events += self._counters(decision)
            events += self._preempted(decision)
            for change in decision.changes:
                events += self._change(change)
        for decision, (begin_s, end_s) in zip(self._decisions, self._spans(), strict=True):
            for chunk in decision.chunks:
                events += self._chunk(chunk, decision.step, begin_s, end_s)
        for sequence, (begin_s, part) in self._open.items():
            events += self._part(sequence, part, begin_s, self._end_s)
        tracks = [_name(REQUESTS, sequence, track) for sequence, track in self._tracks.items()]
        return tracks + events

    def _spans(self) -> Iterable[tuple[float, float]]:
        """When each step ran: one that was planned ahead begins when the one before ends."""
        before_s = self._origin_s
        for decision in self._decisions:
            begin_s = max(decision.planned_s, before_s)
            end_s = decision.ended_s if decision.ended_s is not None else self._end_s
            before_s = max(end_s, before_s)
            yield begin_s, max(end_s, begin_s)

    def _step(self, decision: Decision, begin_s: float, end_s: float) -> Event:
        bucket = decision.bucket
        tokens = decision.decode_rows + sum(chunk.length for chunk in decision.chunks)
        arguments: dict[str, Any] = {
            "step": decision.step,
            "decode rows": decision.decode_rows,
            "prefill tokens": tokens - decision.decode_rows,
            "padding": bucket.tokens - tokens,
            "waiting": {str(reason): count for reason, count in decision.waiting.items()},
            "held up": {name: str(reason) for name, reason in decision.held.items()},
        }
        arguments |= {"admitted": list(decision.admitted)} if decision.admitted else {}
        arguments |= {"moved blocks": decision.moves} if decision.moves else {}
        if decision.displaced:
            arguments["displaced"] = [
                {"sequence": d.sequence, "for": d.claimant, "fate": d.fate, "prices_s": dict(d.prices)}
                for d in decision.displaced
            ]
        if decision.waited:
            arguments["waited"] = [
                {"sequence": w.claimant, "spared": w.spared, "prices_s": dict(w.prices)} for w in decision.waited
            ]
        name = str(bucket) if bucket.tokens else "moves"
        return self._complete(STEPS, 1, name, begin_s, end_s, arguments)

    def _counters(self, decision: Decision) -> list[Event]:
        free = decision.blocks - decision.blocks_held - decision.blocks_cached
        values = {
            "KV blocks": {"held": decision.blocks_held, "cached": decision.blocks_cached, "free": free},
            "offloaded blocks": {"host": decision.host_blocks, "disk": decision.disk_blocks},
            "waiting": {str(reason): count for reason, count in decision.waiting.items()} or {"order": 0},
        }
        at = self._us(decision.planned_s)
        return [{"ph": "C", "pid": POOL, "tid": 0, "ts": at, "name": name, "args": v} for name, v in values.items()]

    def _preempted(self, decision: Decision) -> Iterable[Event]:
        for gone in decision.displaced:
            self._fates[gone.sequence] = gone.fate
            arguments = {"for": gone.claimant, "fate": gone.fate, "prices_s": dict(gone.prices)}
            yield self._instant(gone.sequence, "preempted", decision.planned_s, arguments)
        for waits in decision.waited:
            arguments = {"spared": waits.spared, "prices_s": dict(waits.prices)}
            yield self._instant(waits.claimant, "waits for an end", decision.planned_s, arguments)

    def _instant(self, sequence: str, name: str, at_s: float, arguments: dict[str, Any]) -> Event:
        return {
            "ph": "i", "s": "t", "pid": REQUESTS, "tid": self._track(sequence), "ts": self._us(at_s), "name": name,
            "args": arguments,
        }  # fmt: skip

    def _change(self, change: Change) -> list[Event]:
        self._edges.setdefault(change.sequence, []).append(change.at_s)
        before = self._open.pop(change.sequence, None)
        if change.part != ENDED:
            self._open[change.sequence] = change.at_s, change.part
        return self._part(change.sequence, before[1], before[0], change.at_s) if before is not None else []

    def _part(self, sequence: str, part: Part, begin_s: float, end_s: float) -> list[Event]:
        name = part.name
        if name == "preempted":
            name = {"host": "swapped to host", "disk": "swapped to disk"}.get(self._fates.get(sequence, ""), name)
        arguments = {"reason": str(part.reason)} if part.reason is not None else {}
        begin_s, end_s = max(begin_s, self._origin_s), max(end_s, self._origin_s)
        return [self._slice(sequence, name, begin_s, end_s, arguments)] if end_s > begin_s else []

    def _chunk(self, chunk: Chunk, step: int, begin_s: float, end_s: float) -> Iterable[Event]:
        """Cut where the next step, planned meanwhile, ends its part: slices that overlap and do not nest are not drawn.

        part    | prefill        | running: no row in the next step     |
        chunk       | 0..63      | 0..63         |
        """
        text = f"chunk {chunk.start}..{chunk.start + chunk.length - 1}"
        inside = sorted(at_s for at_s in self._edges.get(chunk.sequence, ()) if begin_s < at_s < end_s)
        for since_s, until_s in pairwise([begin_s, *inside, end_s]):
            yield self._slice(chunk.sequence, text, since_s, until_s, {"step": step})

    def _slice(self, sequence: str, name: str, begin_s: float, end_s: float, arguments: dict[str, Any]) -> Event:
        return self._complete(REQUESTS, self._track(sequence), name, begin_s, end_s, arguments)

    def _complete(
        self, pid: int, tid: int, name: str, begin_s: float, end_s: float, arguments: dict[str, Any]
    ) -> Event:
        begin = self._us(begin_s)
        return {
            "ph": "X", "pid": pid, "tid": tid, "ts": begin, "dur": round(self._us(end_s) - begin, 3), "name": name,
            "cat": "prefill" if name == PREFILL.name else "jaxserve", "args": arguments,
        }  # fmt: skip

    def _track(self, sequence: str) -> int:
        return self._tracks.setdefault(sequence, len(self._tracks) + 1)

    def _us(self, at_s: float) -> float:
        return round(1e6 * (at_s - self._origin_s), 3)


def _name(pid: int, name: str, tid: int | None = None) -> Event:
    kind = {"ph": "M", "pid": pid, "name": "process_name" if tid is None else "thread_name", "args": {"name": name}}
    return kind if tid is None else kind | {"tid": tid}
