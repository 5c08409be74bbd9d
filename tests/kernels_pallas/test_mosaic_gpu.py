"""The Mosaic GPU kernels in the interpreter: the suite of all backends, and no race in any of it."""

from typing import ClassVar

from kernels_pallas.paged_attention.cases import Case
from tests.kernels_pallas.backend_suite import SEED, BackendSuite
from tests.kernels_pallas.interpreter import NEWEST, compiled_once, races_found

__all__ = ["compiled_once"]


class TestMosaicGPU(BackendSuite):
    backend = "mosaic_gpu"
    interpret = True
    # the older interpreter is half as fast, and finds fewer races: there each run takes one of the types
    dtypes = BackendSuite.dtypes if NEWEST else (BackendSuite.dtypes[SEED % 2],)
    page_sizes = (16, 32, 64, 128)
    draws = 1
    sizes: ClassVar[dict[str, int]] = {"rows": 5, "kv_heads": 1, "max_pages": 3}

    def check(self, case: Case) -> None:
        super().check(case)
        assert not races_found(), f"races: {case}"
