"""What `bench.throughput` makes of the figures of a run."""

import pytest

from bench.shared.workload import LLAMA_32M, REQUESTS
from bench.throughput import matmul_s
from jaxserve.checkpoints import config_from_hf


def test_a_requests_first_output_comes_with_its_prompt() -> None:
    config = config_from_hf(LLAMA_32M)
    rates = {"matmul_gflops_64_rows": 1.0, "matmul_gflops_512_rows": 2.0}
    figures = {"median": {"prompt_tokens": 100 * REQUESTS}} | rates
    one, two = matmul_s(config, figures, 1), matmul_s(config, figures, 2)
    weights = 8 * (512 * 64 * (8 + 4 + 4 + 8) + 3 * 512 * 1408) + 512 * 8192
    assert two - one == pytest.approx(2e-9 * REQUESTS * weights)
    assert one == pytest.approx(matmul_s(config, figures | {"matmul_gflops_64_rows": 9.0}, 1)), "no decode step yet"
