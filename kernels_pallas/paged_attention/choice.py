"""Who computes an attention call: one table of backends, and what each GPU generation takes first.

A backend is a module with `decode`, `prefill` and `limit`: `limit(problem)` is None, or the sentence that says which
limit of the backend the problem is outside of. Modules are loaded when they are first asked for.

    capability 9.0 (H100, H200)             mosaic_gpu, then triton, then reference
    capability 8.x (A100, A10, L4, RTX 30, 40)          triton, then reference
    everything else, the CPU included                           reference
"""

import importlib
import warnings
from types import ModuleType

import jax

from kernels_pallas.paged_attention.options import Problem

MODULES = {
    "mosaic_gpu": "kernels_pallas.paged_attention.mosaic_gpu",
    "triton": "kernels_pallas.paged_attention.triton",
    "reference": "kernels_pallas.paged_attention.reference",
}
BACKENDS: tuple[str, ...] = ("auto", *MODULES)


class UnsupportedByBackend(ValueError):
    """The named backend cannot compute this problem; the message says which limit it hit."""


def module_of(backend: str) -> ModuleType:
    """The backend's module. UnsupportedByBackend where this JAX or this copy of the code lacks it."""
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        raise UnsupportedByBackend(f"backend {backend!r} cannot be loaded here: {error}") from error


def limit(backend: str, problem: Problem) -> str | None:
    """None, or which limit of `backend` the problem is outside of."""
    try:
        return module_of(backend).limit(problem)
    except UnsupportedByBackend as error:
        return str(error)


def preferred(capability: tuple[int, int] | None) -> tuple[str, ...]:
    """Backends in the order in which `auto` tries them; `capability` is None where the device is no NVIDIA GPU."""
    if capability == (9, 0):
        return "mosaic_gpu", "triton", "reference"
    if capability is not None and capability[0] == 8:
        return "triton", "reference"
    return ("reference",)


def choose(backend: str, problem: Problem, capability: tuple[int, int] | None) -> str:
    """The backend's name for a problem.

    `auto` takes the first preferred one that can, and warns when that is not the first, naming the limit, and when an
    NVIDIA GPU is left to plain XLA. `capability` is None where the device is no NVIDIA GPU.

    Raises:
      UnsupportedByBackend: a backend was asked for by name and cannot.
    """
    if backend != "auto":
        reason = limit(backend, problem) or _wrong_generation(backend, capability)
        if reason is not None:
            raise UnsupportedByBackend(
                f"backend {backend!r} cannot compute this attention: {reason}. Use backend='reference', which computes "
                f"everything, slowly on a GPU"
            )
        return backend
    candidates = preferred(capability)
    reasons: list[str] = []
    if capability is not None and candidates == ("reference",):
        reasons.append("no kernel is made for GPUs of compute capability {}.{}".format(*capability))
    for name in candidates:
        if (reason := limit(name, problem)) is None:
            if reasons:
                warnings.warn(f"paged attention falls back to {name!r}: {'; '.join(reasons)}", stacklevel=2)
            return name
        reasons.append(f"{name}: {reason}")
    raise UnsupportedByBackend(f"no backend can compute this attention: {'; '.join(reasons)}")


def _wrong_generation(backend: str, capability: tuple[int, int] | None) -> str | None:
    """None, or that the GPU is of another generation than the backend's kernels. On the CPU they are interpreted, or
    compiled for a GPU elsewhere."""
    if capability is None:
        return None
    here = "this GPU has compute capability {}.{}".format(*capability)
    if backend == "mosaic_gpu" and capability != (9, 0):
        return f"its kernels are for compute capability 9.0 (H100, H200), and {here}"
    if backend == "triton" and capability < (8, 0):
        return f"its kernels are for compute capability 8.0 and above, and {here}"
    return None


def device_capability() -> tuple[int, int] | None:
    """Compute capability of the device that runs by default, or None where that is no NVIDIA GPU."""
    default = jax.config.jax_default_device
    device = default if isinstance(default, jax.Device) else jax.local_devices()[0]
    version = str(getattr(device, "compute_capability", "") or "")
    major, dot, minor = version.partition(".")
    return (int(major), int(minor)) if dot and major.isdigit() and minor.isdigit() else None
