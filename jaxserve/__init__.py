"""jaxserve: continuous batching for JAX models.

`LLM` is the Python API (`jaxserve.llm`), `jaxserve serve` the server. Importing this package imports nothing heavy:
names are resolved when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxserve.core.sampling import SamplingParams
    from jaxserve.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()} - {"Any", "TYPE_CHECKING"})


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from jaxserve.llm import LLM

        return LLM
    if name == "SamplingParams":
        from jaxserve.core.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'jaxserve' has no attribute {name!r}")
