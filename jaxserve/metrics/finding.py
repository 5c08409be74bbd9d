"""A cause of slow or refused requests, with its evidence and its remedy."""

import enum
from dataclasses import dataclass


class Cause(enum.StrEnum):
    STARVATION = "starvation"
    REFUSALS = "refusals"
    FAILURES = "failures"
    QUEUEING = "queueing"
    LONG_PROMPTS = "longer prompts"
    KV_PRESSURE = "KV pressure"
    PREEMPTION = "preemption"
    PADDING = "padding"
    RECOMPILATION = "recompilation"
    SLOW_STEPS = "slow steps"
    NETWORK = "network"
    BUSY_HOST = "busy host"
    RAISED_PRIORITIES = "raised priorities"
    OWN_OBJECTIVES = "requests' own objectives"
    UNEXPLAINED = "none of the known causes"


@dataclass(frozen=True, slots=True)
class Finding:
    """`weight`: seconds of the requests that it explains; the heaviest comes first."""

    cause: Cause
    weight: float
    evidence: str
    advice: str
