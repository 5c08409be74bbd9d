"""The Azure LLM inference trace of 2023, conversation and code merged: stretches of it, run faster."""

from pathlib import Path

from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.traces import merged, read_trace, window

FILES = ("azure_2023_conv.jsonl", "azure_2023_code.jsonl")
SECONDS = 240.0
OFFSETS = (60.0, 600.0, 1200.0)


def load(traces: Path) -> list[Arrival]:
    """Both files of the folder, in order of time."""
    return merged(*(read_trace(traces / name) for name in FILES))


def stretch(trace: list[Arrival], offset_s: float, compression: float) -> list[Arrival]:
    return window(trace, offset_s, SECONDS, compression)
