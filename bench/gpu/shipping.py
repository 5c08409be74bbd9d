"""Part 5: this GPU's own compile target, and whether an executable made without a GPU loads and runs on it."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu.part import Item, Setting
from bench.shared.models import LLAMA_1B, tiny
from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.core.target import find_target
from jaxserve.models.params import random_params
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.batch import packed_size
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.programs.compile_only import CompileOnlyDevice, has_compiler, without_gpu
from jaxserve.runtime.programs.lowering import Lowering
from kernels_pallas.paged_attention import choice
from kernels_pallas.paged_attention.options import Problem

BUCKET = Bucket(8, 64, 2, 16)


def items(setting: Setting) -> Iterator[Item]:
    yield Item("target", partial(_target, setting))
    yield Item("serialised executable", partial(_load, setting), limit_s=90.0)


def _target(setting: Setting) -> dict[str, Any]:
    """Writes `target.txtpb`: from JAX's topology, or from what XLA dumps beside a compilation."""
    text = _from_topology() or _from_dump()
    if text is None:
        return {"skipped": "this JAX gives no target configuration for its device"}
    Path(setting.out, "target.txtpb").write_text(text)
    return {"file": "target.txtpb", "characters": len(text)}


def _from_topology() -> str | None:
    try:
        from jax._src.lib import xla_client

        return str(xla_client.get_topology_for_devices(jax.devices()).target_config) or None
    except Exception as error:
        print(f"no target_config from the topology: {error!r}")
        return None


def _from_dump() -> str | None:
    jax.jit(lambda x: jnp.sin(x) + 1.0).lower(jnp.zeros(8)).compile()
    folder = os.environ.get("JAXSERVE_BENCH_DUMP", "/nowhere")
    found = sorted(Path(folder).glob("*gpu_target_config.pbtxt"))
    return found[-1].read_text() if found else None


def _load(setting: Setting) -> dict[str, Any]:
    """A step of a small model, compiled by another process without a GPU, against the same compiled here."""
    if not has_compiler():
        return {"skipped": "JAX's CUDA plugin is not installed"}
    own = Path(setting.out, "target.txtpb")
    target = str(own) if own.is_file() else "h200"
    made = Path(setting.out, "step.executable")
    command = [sys.executable, "-m", "bench.gpu.shipping", target, str(made)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=80)
    if done.returncode:
        return {"loads": False, "error": f"compiling without a GPU: {done.stderr[-800:]}"}
    size = made.stat().st_size
    if setting.dry_run:
        return {"loads": None, "bytes": size, "skipped": "loading needs the GPU"}
    from jax.experimental import serialize_executable

    payload, in_tree, out_tree = pickle.loads(made.read_bytes())
    loaded = serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=jax.devices()[:1])
    made.unlink()
    found = np.asarray(_run(loaded), np.float32)
    lowering, params = _lowering(Placement.default(), _backend(jax.devices()[0]))
    expected = np.asarray(_run(lowering.model_program(BUCKET).compile(), params), np.float32)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return {"loads": True, "bytes": size, "relative_difference": error, "passed": error < 0.02}


def _backend(device: Any) -> str:
    model = tiny(LLAMA_1B)
    problem = Problem(model.head_dim, model.group_size, 64, "bfloat16", "bfloat16")
    major, _, minor = str(device.compute_capability).partition(".")
    return choice.choose("auto", problem, (int(major), int(minor)))


def _lowering(placement: Placement, backend: str) -> tuple[Lowering, Any]:
    """The small model's programs, and its weights, or their shapes where the device only compiles."""
    model = tiny(LLAMA_1B)
    if isinstance(placement, CompileOnlyDevice):
        params = model_for(model).abstract_params(model, jnp.bfloat16)
    else:
        params = random_params(model, 0, jnp.bfloat16)
    settings = EngineConfig.from_settings(block_size=64, max_num_seqs=8, max_model_len=256, attention_backend=backend)
    geometry = Geometry.of(model, settings, jnp.bfloat16, num_blocks=33)
    return Lowering(geometry, params, placement, settings.runtime), params


def _run(program: Any, params: Any = None) -> jax.Array:
    """Logits of a step in which every row is padding but reads real weights."""
    lowering, own = _lowering(Placement.default(), "reference")
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), lowering.state)
    tokens, lengths = (jnp.zeros(held.shape, jnp.int32) for held in (lowering.slots.tokens, lowering.slots.lengths))
    packed = np.zeros(packed_size(BUCKET, lowering.table_width), np.int32)
    _, output = program(own if params is None else params, state, tokens, lengths, packed)
    return output.logits[: BUCKET.decode_rows]


def compile_to(target: str, path: Path) -> None:
    """Compile the step for a target and write the executable to `path`."""
    without_gpu()
    from jax.experimental import serialize_executable

    device = CompileOnlyDevice(find_target(target))
    lowering, _ = _lowering(device, _backend(device.device))
    with device.lowering():
        lowered = lowering.model_program(BUCKET)
    path.write_bytes(pickle.dumps(serialize_executable.serialize(lowered.compile())))


if __name__ == "__main__":
    compile_to(sys.argv[1], Path(sys.argv[2]))
