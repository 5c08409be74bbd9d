"""`jaxserve plan`: what a model leaves room for on a GPU, before the GPU is rented."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import CheckpointError, CompilerMissing
from jaxserve.core.sections import ModelConfigSection
from jaxserve.core.settings import require
from jaxserve.core.target import Target, find_target

_EXAMPLE = """\
example:
  jaxserve plan --model ./Llama-3.1-8B --target h200 --config configs/h200.toml --length 2048 --length 8192
  jaxserve plan --model meta-llama/Llama-3.1-8B-Instruct      of the hub, whose config.json alone is downloaded

The widest step is compiled for the GPU where JAX's CUDA plugin is installed (make cuda; no GPU is needed): then the
figures are exact. Elsewhere, and for more than one GPU, they are an estimate, and say so.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="say what fits on a GPU: weights, steps, KV blocks, sequences",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=WideFormatter,
    )
    parser.set_defaults(run=run)
    group = parser.add_argument_group("plan")
    group.add_argument("--target", default="h200", help="a name in configs/targets, or a .txtpb file (default h200)")
    group.add_argument("--length", type=int, action="append", metavar="TOKENS", help="of a sequence; may be repeated")
    group.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that share the model")
    group.add_argument("--estimate", action="store_true", help="compile nothing")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    config, target = config_from_flags(given), find_target(given.target)
    require(given.tensor_parallel >= 1, "tensor_parallel", given.tensor_parallel, "a positive number")
    for length in given.length or ():
        require(length >= 1, "length", length, "a positive number of tokens")
    from jaxserve.runtime.programs.compile_only import without_gpu

    without_gpu()
    print("\n".join(_lines(config, target, given)))
    return 0


def _lines(config: EngineConfig, target: Target, given: argparse.Namespace) -> Iterator[str]:
    from jaxserve.core.buckets import BucketTable
    from jaxserve.runtime.capacity import Programs, compile_programs, estimate_programs, fit, jax_share

    model, dtype, devices = _model(config.model), _dtype(config.model.dtype), given.tensor_parallel
    buckets = BucketTable.from_config(config.buckets, config.scheduler).all()
    why = "--estimate" if given.estimate else "the engine runs on one GPU yet" if devices > 1 else ""
    programs: Programs | None = None
    if not why:
        try:
            programs = compile_programs(model, config, target, dtype)
        except CompilerMissing as error:
            why = str(error)
    programs = programs or estimate_programs(model, buckets, 4 if dtype == "float32" else 2)
    found = fit(model, config, target, dtype=dtype, programs=programs, devices=devices)
    gib = lambda size: f"{size / 2**30:8.2f} GiB"  # noqa: E731

    yield f"{model.architecture} in {dtype} on {devices} x {target.device}" + (" (AN ESTIMATE)" if why else "")
    yield f"  memory          {gib(found.memory)}  a GPU"
    yield (
        f"  usable          {gib(found.usable)}  JAX's share {jax_share():g} (XLA_PYTHON_CLIENT_MEM_FRACTION) x "
        f"gpu_memory_utilization {config.cache.gpu_memory_utilization:g}"
    )
    yield f"  weights         {gib(found.weights)}"
    yield f"  slots           {gib(found.state)}  {found.max_num_seqs} sequences of up to {found.max_model_len} tokens"
    yield f"  widest step     {gib(programs.temporaries)}  {max(buckets, key=lambda bucket: bucket.tokens)}" + (
        ", estimated" if why else ", as compiled"
    )
    yield (
        f"  KV blocks       {gib(found.blocks * found.block)}  {found.blocks} of {found.block_size} tokens, "
        f"{found.block / 2**20:.2f} MiB each; bound by {found.held_by}"
    )
    if programs.compile_s is not None:
        yield f"  compile time    {programs.compile_s:8.1f} s    of the widest two programs; steps: {programs.programs}"
    yield "sequences at once"
    usual = {length for length in (1024, 4096) if length < found.max_model_len}
    for length in given.length or sorted(usual | {found.max_model_len}):
        count, limit = (0, "max_model_len") if length > found.max_model_len else found.sequences(length)
        yield f"  of {length:7d} tokens: {count:6d}, bound by {limit}"
    if why:
        yield f"An estimate: {why}."


def _model(section: ModelConfigSection) -> Any:
    """The model's configuration: from a directory, a config.json, or a hub id, of which nothing else is downloaded."""
    from jaxserve.assembly import EMBEDDED
    from jaxserve.checkpoints import config_from_hf, hub
    from jaxserve.checkpoints.hf_config import config_from_directory

    path = EMBEDDED if section.model == "embedded" else Path(section.model)
    if not path.is_file():
        source = path if path.is_dir() else section.model
        return config_from_directory(hub.resolve(source, revision=section.revision, part="config"))
    try:
        mapping = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(path, f"not JSON ({error})", "expected a Hugging Face config.json") from error
    return config_from_hf(mapping, path)


def _dtype(name: str) -> str:
    return "bfloat16" if name == "auto" else name
