"""The one place where the host side and the device side are joined: a configuration and weights become an engine.

find_folder    where the model lies, its `config.json` read
find_tokenizer its own or another, read before minutes go into weights
find_weights   what was asked for: a checkpoint read, or a pytree checked and placed
find_geometry  sizes and types: buckets, the longest sequence, and how many KV blocks device and tiers have room for
make_runner    programs over weights and blocks; `warm_up` compiles them
make_engine    a scheduler over the same blocks, and the loop that gives its plans to the runner
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxserve.checkpoints import hub
from jaxserve.checkpoints.hf_config import config_from_directory
from jaxserve.checkpoints.weights import load, parse_dtype
from jaxserve.core.clock import Clock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.progress import progress_bar
from jaxserve.core.sections import ModelConfigSection, RuntimeConfig
from jaxserve.core.settings import require
from jaxserve.core.tenants import Tenants
from jaxserve.costs.file import load_cost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.engine.engine import Engine
from jaxserve.engine.host_side import Sizes, host_side
from jaxserve.models.config import ModelConfig
from jaxserve.models.params import check_params, compute_dtype, place_params
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.capacity import estimate_programs
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import size_pool, tier_blocks
from jaxserve.runtime.programs.table import compile_in_background
from jaxserve.runtime.runner import ModelRunner, Processor
from jaxserve.text.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters on the device, and what they are."""

    config: ModelConfig
    params: Any
    dtype: Any
    """In which they compute."""
    placement: Placement


def find_folder(section: ModelConfigSection, params: Any, model_config: ModelConfig | None) -> Path | None:
    """Where the checkpoint that the section names lies, all but its weights; None for a pytree.

    Raises:
      ConfigError, CheckpointError, UnsupportedArchitecture.
    """
    if (params is None) != (model_config is None):
        raise ConfigError("params and model_config go together: give both, or a model")
    if params is not None:
        require(
            section.revision is None, "revision", section.revision, "none beside params: revisions belong to hub ids"
        )
        return None
    source = _source(section.model)
    config_from_directory(hub.resolve(source, revision=section.revision, part="config"))
    return hub.resolve(source, revision=section.revision, part="tokenizer")


def find_tokenizer(section: ModelConfigSection, given: Tokenizer | None, folder: Path | None) -> Tokenizer | None:
    """`given`, that which the section names, or the model's own; None where there is none, or none is wanted.

    Raises:
      ConfigError: one is given where none is wanted. CheckpointError: there is none where there should be.
    """
    if section.skip_tokenizer_init:
        require(given is None, "skip_tokenizer_init", True, "false beside a tokenizer")
        return None
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        raise ConfigError(
            f"tokenizer is a {type(given).__name__}: give a directory, a hub id, or jaxserve.text.tokenizer.Tokenizer("
            "backend), of the tokenizers library's object (that of transformers has it as backend_tokenizer)"
        )
    if section.tokenizer is not None:
        return Tokenizer.from_directory(hub.resolve(_source(section.tokenizer), part="tokenizer"))
    return None if folder is None else Tokenizer.from_directory(folder)


def find_weights(section: ModelConfigSection, params: Any, model_config: ModelConfig | None) -> Weights:
    """The pytree, if there is one, or the checkpoint that the section names.

    Raises:
      ConfigError, CheckpointError, UnsupportedArchitecture, ParamsMismatch.
    """
    if params is not None and model_config is not None:
        check_params(params, model_config)
        placement, model = Placement.of(jax.tree.leaves(params)[0]), model_for(model_config)
        dtype = compute_dtype(params)
        require(
            section.dtype in ("auto", str(dtype)), "dtype", section.dtype,
            f"auto, or params cast to it (they are {dtype})",
        )  # fmt: skip
        like = placement.abstract_params(model.abstract_params(model_config, dtype), model.leaf_axes(model_config))
        return Weights(model_config, place_params(params, like), dtype, placement)
    dtype = parse_dtype(None if section.dtype == "auto" else section.dtype)
    placement = Placement.default()
    checkpoint = load(_source(section.model), dtype=dtype.name, revision=section.revision, placement=placement)
    return Weights(checkpoint.config, checkpoint.params, dtype, placement)


def _source(name: str) -> str:
    return str(EMBEDDED) if name == "embedded" else name


def find_geometry(config: EngineConfig, weights: Weights) -> Geometry:
    """Sizes and types of an engine with these weights, and what the device has room for beside them.

    Raises:
      NotEnoughMemory, or ConfigError naming the setting that cannot work.
    """
    geometry = Geometry.of(weights.config, config, weights.dtype, num_blocks=0)
    programs = estimate_programs(geometry.model, geometry.buckets.all(), geometry.dtype.itemsize)
    num_blocks = size_pool(
        config.cache,
        geometry.model,
        geometry.dtype,
        weights.placement.device,
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(weights.params)),
        program_bytes=programs.temporaries,
        useful_tokens=geometry.num_slots * geometry.max_len,
    )
    host, disk, staging = tier_blocks(config.cache, geometry.model, geometry.dtype)
    return replace(geometry, num_blocks=num_blocks, host_blocks=host, disk_blocks=disk, staging_blocks=staging)


def make_runner(config: EngineConfig, weights: Weights, geometry: Geometry, processor: Processor | None) -> ModelRunner:
    """Nothing is compiled yet: see `warm_up`."""
    return ModelRunner(
        geometry, weights.params, weights.placement, cache=config.cache, runtime=config.runtime, processor=processor
    )


def warm_up(runner: ModelRunner, runtime: RuntimeConfig, *, progress: bool) -> None:
    """Compile every program and run it once, or, progressively, the widest now and compile the rest in the background,
    where nothing can run: those run for the first time when a step needs them."""
    programs, keys = runner.programs, runner.programs.all()
    now = keys if runtime.warmup == "full" else programs.serving()
    with progress_bar(len(now), "Compiling", "program", show=progress) as bar:
        programs.compile(now, bar.update)
    ready = programs.ready
    with progress_bar(len(ready), "Rehearsing", "bucket", show=progress) as bar:
        for bucket in ready:
            runner.rehearse(bucket)
            bar.update()
    if len(now) < len(keys):
        compile_in_background(keys)


def make_engine(
    config: EngineConfig,
    geometry: Geometry,
    runner: ModelRunner,
    *,
    tokenizer: Tokenizer | None,
    tenants: Tenants,
    clock: Clock,
) -> Engine:
    """The host side over the device's blocks, with the runner for an executor."""
    sizes = Sizes(
        vocab_size=geometry.model.vocab_size, max_len=geometry.max_len, num_blocks=geometry.num_blocks,
        host_blocks=geometry.host_blocks, disk_blocks=geometry.disk_blocks, staging_blocks=geometry.staging_blocks,
    )  # fmt: skip
    cost_model = config.scheduler.cost_model
    return host_side(
        config, sizes, runner, clock, costs=StepCosts(load_cost(cost_model) if cost_model else None),
        moves=runner.measure_moves(), tenants=tenants, tokenizer=tokenizer,
    )  # fmt: skip
