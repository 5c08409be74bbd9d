"""The XLA reference against float64."""

from tests.kernels_pallas.backend_suite import BackendSuite


class TestReference(BackendSuite):
    backend = "reference"
    dtypes = ("bfloat16", "float16", "float32")
    draws = 1
