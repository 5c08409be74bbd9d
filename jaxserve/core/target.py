"""A GPU that need not be here: its sizes, read from the text by which XLA's compiler knows it.

`configs/targets/` holds such texts (XLA's GpuTargetConfig as a text protobuf). A real GPU writes its own:
`jax.experimental.topologies.get_topology_for_devices(jax.devices()).target_config`.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from jaxserve.core.errors import ConfigError

FOLDERS = (
    Path(__file__).parents[2] / "configs" / "targets",  # a source tree
    Path(sys.prefix) / "share" / "jaxserve" / "targets",  # an installed package
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a GPU has. Sizes in bytes, rates per second."""

    name: str
    text: str
    """The target as the compiler reads it."""
    device: str
    capability: tuple[int, int]
    memory: int
    bandwidth: int
    cores: int
    """Streaming multiprocessors; the four limits below are of one."""
    shared_memory: int
    shared_memory_block: int
    """Most that one block may have."""
    registers: int
    threads: int


def find_target(name: str | Path) -> Target:
    """A target by its name in `configs/targets`, or by the path of a file; ConfigError if there is none."""
    places = [Path(name), *(folder / f"{name}.txtpb" for folder in FOLDERS)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        known = sorted({file.stem for folder in FOLDERS for file in folder.glob("*.txtpb")})
        raise ConfigError(f"target = {str(name)!r} is not known: give one of {', '.join(known)}, or a .txtpb file")
    return read_target(path.stem, path.read_text())


def read_target(name: str, text: str) -> Target:
    """ConfigError names the field that is missing."""

    def find(pattern: str, what: str) -> int:
        found = re.search(pattern, text)
        if found is None:
            raise ConfigError(f"target {name}: no {what}; expected the text form of XLA's GpuTargetConfig")
        return int(found[1])

    def number(field: str) -> int:
        return find(rf"\b{field}:\s*([0-9]+)", field)

    capability = tuple(
        find(rf"cuda_compute_capability\s*\{{[^}}]*{part}:\s*([0-9]+)", "cuda_compute_capability")
        for part in ("major", "minor")
    )
    device = re.search(r'device_description_str:\s*"([^"]*)"', text)
    return Target(
        name=name,
        text=text,
        device=device[1] if device else name,
        capability=(capability[0], capability[1]),
        memory=number("device_memory_size"),
        bandwidth=number("memory_bandwidth"),
        cores=number("core_count"),
        shared_memory=number("shared_memory_per_core"),
        shared_memory_block=number("shared_memory_per_block_optin"),
        registers=number("registers_per_core_limit"),
        threads=number("threads_per_core_limit"),
    )
