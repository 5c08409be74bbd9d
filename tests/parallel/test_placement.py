"""Where arrays lie: on the device that was chosen, or split over a mesh by the names of their axes."""

import os
import subprocess
import sys

import jax
from jax.sharding import SingleDeviceSharding

from jaxserve.models import ModelConfig, model_for
from jaxserve.models.params import place_params
from jaxserve.parallel.placement import Placement

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=32, hidden_size=12, intermediate_size=16, num_layers=2, num_heads=8,
    num_kv_heads=4, head_dim=6, max_position_embeddings=64,
    qkv_bias=True,
)  # fmt: skip


def placed(params, placement: Placement | None = None):
    """The leaves of `params` as an engine places them."""
    placement, model = placement or Placement.of(jax.tree.leaves(params)[0]), model_for(CONFIG)
    like = placement.abstract_params(model.abstract_params(CONFIG, "float32"), model.leaf_axes(CONFIG))
    return jax.tree.leaves(place_params(params, like))


def in_a_process_of(devices: int, code: str) -> None:
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)


def test_one_device_holds_everything() -> None:
    device = jax.devices()[0]
    placement = Placement(device)
    assert placement.params(("D", "F")) == placement.pages == placement.replicated == SingleDeviceSharding(device)
    assert placement.step_input is None and placement.step_blocks is None, "NumPy's arrays are given as they are"
    assert placement.host == SingleDeviceSharding(device), "no kind of its own on a CPU"
    pinned = Placement(device, host_memory="pinned_host")
    assert pinned.host.memory_kind == "pinned_host" and pinned.replicated == placement.replicated


def test_equal_placements_are_equal() -> None:
    device = jax.devices()[0]
    assert Placement(device) == Placement.default() and hash(Placement(device)) == hash(Placement.default())
    assert Placement(device) != Placement(device, host_memory="pinned_host")
    assert Placement(device) != Placement(device, {})


ON_TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxserve.models import random_params
from jaxserve.parallel.placement import Placement
from tests.parallel.test_placement import CONFIG, placed

first, second = jax.devices()
params = random_params(CONFIG, 0, np.float32)
over = jax.device_put(params, second)
found = placed(over)
assert {leaf.device for leaf in found} == {second}, "moved from the device that the caller chose"
pointers = [[leaf.unsafe_buffer_pointer() for leaf in leaves] for leaves in (found, jax.tree.leaves(over))]
assert pointers[0] == pointers[1], "copied"
assert {leaf.device for leaf in placed(jax.tree.map(np.asarray, params))} == {first}
with jax.default_device(second):
    assert {leaf.device for leaf in placed(jax.tree.map(np.asarray, params))} == {second}
both = NamedSharding(jax.make_mesh((2,), ("x",)), PartitionSpec())
assert {leaf.device for leaf in placed(jax.device_put(params, both))} == {first}
assert Placement(second).make(lambda: jax.numpy.zeros(3)).devices() == {second}
"""


def test_a_pytree_stays_on_the_device_that_its_owner_chose() -> None:
    in_a_process_of(2, ON_TWO_DEVICES)


ON_A_MESH = """
import jax, numpy as np
from jaxserve.core.config import EngineConfig
from jaxserve.models import random_params
from jaxserve.parallel.placement import TENSOR, Placement
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import allocate_cache
from tests.parallel.test_placement import CONFIG, placed, shards

placement = Placement(jax.make_mesh((4,), (TENSOR,)))
params = random_params(CONFIG, 0, np.float32)
whole = jax.tree.leaves_with_path(params)
for (path, given), leaf in zip(whole, placed(params, placement), strict=True):
    name = path[-1].key
    wanted = {"embed": (8, 12), "wqkv": (12, 1, 4, 6), "bqkv": (1, 4, 6), "wo": (1, 2, 6, 12), "lm_head": (12, 8),
              "w_gate_up": (12, 2, 4), "w_down": (4, 12)}.get(name, given.shape)
    assert shards(leaf) == [wanted] * 4, (name, shards(leaf))
    np.testing.assert_array_equal(leaf, given)

for kind in ("auto", "int8"):
    settings = EngineConfig.from_settings(block_size=8, kv_cache_dtype=kind)
    cache = allocate_cache(Geometry.of(CONFIG, settings, "float32", num_blocks=5), placement)
    for layer in cache:
        assert shards(layer.keys) == shards(layer.values) == [(5, 1, 8, 6)] * 4
        assert layer.key_scales is None or shards(layer.key_scales) == shards(layer.value_scales) == [(5, 1)] * 4
        assert (layer.key_scales is None) == (kind == "auto")

block = jax.device_put(np.zeros((4, 4, 8, 6), np.float32), Placement(placement.where, host_memory="pinned_host").host)
assert shards(block) == [(4, 1, 8, 6)] * 4 and block.sharding.memory_kind == "pinned_host"
tables = placement.make(lambda: jax.numpy.zeros((3, 5)))
assert shards(tables) == [(3, 5)] * 4 and tables.sharding == placement.step_input
assert placement.step_blocks == placement.pages and placement != Placement(placement.device)

alone = Placement(jax.make_mesh((1,), (TENSOR,), devices=jax.devices()[:1]))
assert alone.params(("V", "D")) == alone.replicated, "an axis that is there once splits nothing"
assert Placement(placement.where, {"D": "other"}).params(("V", "D")) == placement.replicated
"""


def shards(array: jax.Array) -> list[tuple[int, ...]]:
    return [shard.data.shape for shard in array.addressable_shards]


def test_a_mesh_splits_heads_and_matrices() -> None:
    in_a_process_of(4, ON_A_MESH)
