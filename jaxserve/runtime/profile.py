"""What a profiler sees of the engine, and a trace of it.

    host      | step 7                                  |      | step 8 ..
              | pack | model 64d+512p | sample |   wait (of step 6)
    device            jit_model_64d_512p, jit_sample_64_greedy: their operations by layer and kernel, as in
                      layer_3/attention/paged_decode

While nobody profiles a step's names cost under 5 us together, and they change no program: scopes are metadata of its
operations, which the compilation cache does not look at.
"""

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.profiler import StepTraceAnnotation, TraceAnnotation

_METADATA = re.compile(rb'"metadata":\{[^{}]*\},')


def step_named(number: int) -> StepTraceAnnotation:
    """The host's part of a step; XProf groups what the device does by it."""
    return StepTraceAnnotation("step", step_num=number)


def named(part: str, bucket: Any = None) -> TraceAnnotation:
    """A part of it. `bucket` becomes text only while a profiler runs."""
    return TraceAnnotation(part) if bucket is None else TraceAnnotation(part, bucket=bucket)


def start(folder: Path) -> None:
    """Profile the process from now on: the device's work and the host's named parts, without Python's calls.

    Raises:
      RuntimeError: a profile is being taken, by whomever.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(folder), profiler_options=options)


def stop(folder: Path) -> None:
    """Write what was seen since `start(folder)`: for XProf, and `perfetto_trace.json.gz` for Perfetto."""
    jax.profiler.stop_trace()
    for trace in folder.rglob("*.trace.json.gz"):
        _write_for_perfetto(trace, trace.with_name("perfetto_trace.json.gz"))


def _write_for_perfetto(trace: Path, target: Path) -> None:
    """A copy without the `metadata` at its beginning, which Perfetto does not like.

    JAX's own way (`create_perfetto_trace`) parses the whole file as JSON, and so keeps every other thread from running.
    """
    with gzip.open(trace, "rb") as source, gzip.open(target, "wb", compresslevel=3) as sink:
        sink.write(_METADATA.sub(b"", source.read(4096), count=1))
        shutil.copyfileobj(source, sink, 1 << 20)
