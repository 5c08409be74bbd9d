"""What fits on a GPU, by arithmetic that can be checked by hand."""

import pytest

from bench.shared.models import LLAMA_8B
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError, NotEnoughMemory
from jaxserve.core.target import find_target
from jaxserve.runtime.capacity import Programs, estimate_programs, fit, jax_share
from jaxserve.runtime.programs.compile_only import has_compiler

GIB = 1 << 30


def plan(programs: int = GIB, devices: int = 1, target: str = "h200", **settings):
    config = EngineConfig.from_settings(**{"block_size": 64, "max_model_len": 8192, "max_num_seqs": 256} | settings)
    return fit(LLAMA_8B, config, find_target(target), dtype="bfloat16", programs=Programs(programs), devices=devices)


@pytest.fixture(autouse=True)
def whole_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "1.0")


def test_an_8b_model_on_an_h200() -> None:
    found = plan()
    assert found.weights == 2 * 8_030_261_248
    assert found.block == 64 * 131_072  # 32 layers x 2 x 8 heads x 128 x 2 bytes a token
    room = int(150e9 * 0.9) - found.weights - found.state - GIB
    assert found.blocks == room // found.block and found.held_by == "memory"
    assert found.sequences(8192) == (found.blocks // 128, "KV blocks (memory)")
    assert found.sequences(1000) == (256, "max_num_seqs")


def test_temporaries_take_from_the_blocks() -> None:
    assert plan().blocks - plan(programs=GIB + 80 * 64 * 131_072).blocks == 80


@pytest.mark.parametrize(
    ("settings", "blocks", "held_by"),
    [
        ({"num_blocks": 500}, 500, "num_blocks"), ({"kv_cache_bytes": 2 * GIB}, 256, "kv_cache_bytes"),
        ({"max_num_seqs": 2}, 256, "max_num_seqs x max_model_len"),
    ],
)  # fmt: skip
def test_what_bounds_the_blocks(settings: dict, blocks: int, held_by: str) -> None:
    found = plan(**settings)
    assert (found.blocks, found.held_by) == (blocks, held_by)


@pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "int8"])
def test_blocks_of_8_bits_take_half_and_their_scales(kv_dtype: str) -> None:
    assert plan(kv_cache_dtype=kv_dtype).block == plan().block // 2 + 32 * 2 * 8 * 4


def test_several_gpus_share_weights_and_heads() -> None:
    one, four = plan(), plan(devices=4)
    assert (four.weights, four.block) == (one.weights // 4, one.block // 4)
    with pytest.raises(ConfigError, match=r"tensor_parallel = 3 .* divisor of the 8"):
        plan(devices=3)


def test_no_room_says_what_takes_it() -> None:
    with pytest.raises(NotEnoughMemory, match=r"weights take 15\.0 and the widest step 90\.0"):
        plan(programs=90 * GIB, target="a100")


def test_the_share_of_jax_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    assert jax_share() == 0.5
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ConfigError, match="XLA_PYTHON_CLIENT_MEM_FRACTION = 'most'"):
        jax_share()


@pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plugin is not installed (make cuda)")
def test_the_estimate_is_not_below_what_is_compiled() -> None:
    from bench.shared.models import LLAMA_1B, tiny
    from jaxserve.runtime.capacity import compile_programs

    config = EngineConfig.from_settings(block_size=64, max_num_seqs=16, max_num_batched_tokens=256, max_model_len=1024,
                                        attention_backend="triton")  # fmt: skip
    model = tiny(LLAMA_1B)
    exact = compile_programs(model, config, find_target("a100"), "bfloat16")
    buckets = BucketTable.from_config(config.buckets, config.scheduler).all()
    assert exact.compile_s and exact.programs == len(buckets)
    assert 0 < exact.temporaries <= 2 * estimate_programs(model, buckets).temporaries
