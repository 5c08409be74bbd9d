"""Settings that were chosen and change nothing, since another setting leaves them without work.

They are no errors: a file may hold the settings of two policies, and a flag say which one runs. But whoever turns a
knob that is connected to nothing should hear of it.
"""

from collections.abc import Iterator

from jaxserve.core.config import EngineConfig, SchedulerConfig, all_settings
from jaxserve.core.tenants import Tenants

_ONLY_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    "batch_size": ("policy", ("static",)),
    "max_batch_size": ("policy", ("dynamic",)),
    "batch_timeout_s": ("policy", ("dynamic",)),
    "chunk_size": ("policy", ("chunked", "adaptive")),
    "priority_ageing_s": ("ordering", ("priority",)),
    "shortest_ageing_s": ("ordering", ("shortest",)),
    "fairness": ("ordering", ("fair",)),
    "fair_input_weight": ("ordering", ("fair",)),
    "fair_output_weight": ("ordering", ("fair",)),
}
"""A setting, and the values of another one with which it counts."""
_NEEDS = {
    "max_long_partial_prefills": "long_prefill_token_threshold",
    "offload_prefixes": "offload_host_bytes",
    "offload_disk_dir": "offload_disk_bytes",
    "offload_staging_bytes": "offload_disk_bytes",
    "max_log_len": "log_text",
    "batch_store_bytes": "batch_dir",
    "batch_max_file_bytes": "batch_dir",
    "batch_max_lines": "batch_dir",
    "batch_max_open": "batch_dir",
    "batch_concurrency": "batch_dir",
    "batch_tenant": "batch_dir",
}
"""A setting, and the one without which it does not count."""
_REPLACED = {"kv_cache_bytes": ("num_blocks",), "gpu_memory_utilization": ("num_blocks", "kv_cache_bytes")}
"""A setting, and those that take its place."""
_AT_MOST = {"chunk_size": "max_num_batched_tokens", "batch_size": "max_num_seqs", "max_batch_size": "max_num_seqs"}
"""A setting, and the one that bounds it."""


def idle_settings(config: EngineConfig, tenants: Tenants | None = None) -> list[str]:
    """A sentence for each setting that is not its default and has no effect, or less than it says.

    `tenants`: whose objectives count; None: those of the file that the settings name, read where that decides.
    Raises ConfigError if it cannot be.
    """
    values = {s.name: getattr(getattr(config, s.section), s.name) for s in all_settings()}
    chosen = {s.name for s in all_settings() if values[s.name] != s.default}
    idle = dict(_without_work(values, chosen))
    found = [*idle.items(), *_bounded(values, chosen - idle.keys())]
    return [
        *(f"{name} = {values[name]!r} {why}" for name, why in found),
        *_without_objective(config.scheduler, tenants),
    ]


def _without_work(values: dict[str, object], chosen: set[str]) -> Iterator[tuple[str, str]]:
    for name, (other, wanted) in _ONLY_WITH.items():
        if name in chosen and values[other] not in wanted:
            yield name, f"has no effect with {other} = {values[other]!r}: it is for {' and '.join(map(repr, wanted))}"
    for name, other in _NEEDS.items():
        if name in chosen and not values[other]:
            yield name, f"has no effect without {other}"
    for name, others in _REPLACED.items():
        given = [other for other in others if values[other] is not None]
        if name in chosen and given:
            yield name, f"has no effect: {given[0]} = {values[given[0]]!r} replaces it"


def _bounded(values: dict[str, object], chosen: set[str]) -> Iterator[tuple[str, str]]:
    for name, other in _AT_MOST.items():
        value, most = values[name], values[other]
        if name in chosen and isinstance(value, int) and isinstance(most, int) and value > most:
            yield name, f"is more than {other} = {most}, which bounds it"


def _without_objective(config: SchedulerConfig, tenants: Tenants | None) -> Iterator[str]:
    for name, value, objective, then in (
        ("admission", "slo", "ttft_slo_s", "refuses only requests that bring an objective of their own"),
        ("policy", "adaptive", "tpot_slo_s", "fits its steps only to requests that bring an objective of their own"),
        ("ordering", "slack", "ttft_slo_s", "is like 'fcfs' for requests that bring no objective of their own"),
    ):
        if getattr(config, name) == value and not any(
            getattr(who, objective) is not None for who in (config, *(tenants or Tenants.of(config)))
        ):
            yield f"{name} = {value!r} {then}: set {objective}, here or for tenants"
