"""The sections of the configuration that make an engine: each class of it is given its own section and no more.

A setting has one name everywhere: a key of its section in a TOML file, a keyword of `LLM(...)`, a flag
(`max_num_seqs` is `--max-num-seqs`). Where vLLM has the setting, the name and the meaning are vLLM's. What only
`jaxserve serve` heeds is in `core.server_sections`; `core.config` puts all together.
"""

from dataclasses import dataclass
from typing import Literal

from jaxserve.core.settings import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigSection:
    """Which weights, in which type."""

    model: str = setting("embedded", "a Hugging Face directory or hub id, a converted checkpoint, or 'embedded'")
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "type of weights and activations; auto: float32 on the CPU, bfloat16 on a GPU"
    )
    tokenizer: str | None = setting(None, "directory or hub id with another tokenizer; default: the model's own")
    skip_tokenizer_init: bool = setting(False, "token ids in, token ids out, no text: the model needs no tokenizer")
    max_model_len: int | None = setting(None, "longest prompt + output, in tokens; default: what the model declares")
    served_model_name: str | None = setting(None, "the name clients see; default: the model's own")
    seed: int = setting(0, "seed of every request that brings none")
    generation_config: str = setting(
        "auto", "sampling defaults: auto: the model's generation_config.json; none; or a folder that has such a file"
    )

    def __post_init__(self) -> None:
        longest = self.max_model_len
        require(longest is None or longest > 0, "max_model_len", longest, "a positive number of tokens")
        require(
            self.tokenizer is None or not self.skip_tokenizer_init,
            "skip_tokenizer_init", True, f"false beside tokenizer = {self.tokenizer!r}",
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The pool of KV blocks."""

    block_size: int = setting(
        32,
        "tokens in a KV block (a page of the kernels): 8, 16, 32, 64 or 128; from 16 on for kernels of an H100 or H200",
    )
    kv_cache_dtype: Literal["auto", "float8_e4m3fn", "int8"] = setting(
        "auto", "type of the KV blocks; auto: that of the weights. 8 bits: half the memory of bfloat16, less exact"
    )
    gpu_memory_utilization: float = setting(0.9, "share of the device's memory for weights, programs and KV blocks")
    kv_cache_bytes: int | None = setting(None, "size of the KV pool", replaces=("gpu_memory_utilization",))
    num_blocks: int | None = setting(
        None, "size of the KV pool in blocks", replaces=("kv_cache_bytes", "gpu_memory_utilization")
    )
    enable_prefix_caching: bool = setting(True, "requests that begin alike share the blocks of their common beginning")
    prefix_retention: Literal["lru", "sessions"] = setting(
        "lru", "which prefix is evicted: the least recently used, or the one least likely to be used again",
        needs="enable_prefix_caching",
    )  # fmt: skip
    watermark: float = setting(0.01, "share of the blocks that admission leaves free for the sequences that run")
    offload_host_bytes: int = setting(
        0, "host memory for the KV blocks of preempted sequences and evicted prefixes, allocated at the start; 0: none"
    )
    offload_prefixes: bool = setting(
        True, "prefix blocks evicted from the device are kept in the host's memory", needs="offload_host_bytes"
    )
    offload_disk_bytes: int = setting(0, "most bytes of KV blocks of preempted sequences in offload_disk_dir; 0: none")
    offload_disk_dir: str = setting(
        "~/.cache/jaxserve/kv", "folder for those; one engine's own, emptied at the start", needs="offload_disk_bytes"
    )
    offload_staging_bytes: int = setting(
        256 << 20, "host memory for KV blocks on their way to or from the disk, unless one sequence needs more",
        needs="offload_disk_bytes",
    )  # fmt: skip

    @property
    def pool_setting(self) -> str:
        """The setting that makes the pool larger: that which says its size, or would."""
        return "kv_cache_bytes" if self.num_blocks is None else "num_blocks"

    def __post_init__(self) -> None:
        require(self.block_size in (8, 16, 32, 64, 128), "block_size", self.block_size, "8, 16, 32, 64 or 128")
        share = self.gpu_memory_utilization
        require(0.0 < share <= 1.0, "gpu_memory_utilization", share, "a share above 0 and at most 1")
        require(0.0 <= self.watermark < 1.0, "watermark", self.watermark, "a share from 0 to below 1")
        for name in ("kv_cache_bytes", "num_blocks"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a positive number")
        for name in ("offload_host_bytes", "offload_disk_bytes", "offload_staging_bytes"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number of bytes, or 0")
        disk = self.offload_disk_dir if self.offload_disk_bytes else "unused"
        require(bool(disk), "offload_disk_dir", disk, "a folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs, when, and how much at once. docs/scheduling.md compares the choices."""

    policy: str = setting(
        "chunked", "when a batch starts, what a step takes: static, dynamic, continuous, chunked, adaptive"
    )
    ordering: str = setting("fcfs", "who is next: fcfs, priority, fair, slack, shortest")
    tenants: str | None = setting(None, "TOML file of tenants; configs/tenants.toml is an example")
    admission: Literal["queue", "slo"] = setting(
        "queue", "slo: refuse (HTTP 429) a request whose first token is predicted to come too late"
    )
    ttft_slo_s: float | None = setting(None, "objective for the first token, of requests and tenants that bring none")
    tpot_slo_s: float | None = setting(None, "objective for the mean time between output tokens, likewise")
    cost_model: str | None = setting(None, "JSON file of step costs to begin with; `jaxserve calibrate` makes one")
    preempt_for_admission: bool = setting(True, "a higher class, or a tenant below its share, may preempt others")
    batch_size: int = setting(4, "requests in a batch", only_with=("policy", "static"), at_most="max_num_seqs")
    max_batch_size: int = setting(
        8, "most requests in a batch", only_with=("policy", "dynamic"), at_most="max_num_seqs"
    )
    batch_timeout_s: float = setting(0.05, "longest wait for a full batch", only_with=("policy", "dynamic"))
    priority_ageing_s: float = setting(
        60.0, "seconds of waiting that make up for one class", only_with=("ordering", "priority")
    )
    shortest_ageing_s: float = setting(
        0.5, "seconds of waiting that make up for a prompt twice as long", only_with=("ordering", "shortest")
    )
    fairness: Literal["tokens", "time"] = setting(
        "tokens", "count tokens, or predicted device time", only_with=("ordering", "fair")
    )
    fair_input_weight: float = setting(1.0, "what a prompt token counts", only_with=("ordering", "fair"))
    fair_output_weight: float = setting(2.0, "what an output token counts", only_with=("ordering", "fair"))
    long_prefill_token_threshold: int | None = setting(
        None, "a prompt with more tokens left than this is long, and takes at most so many in a step"
    )
    max_long_partial_prefills: int | None = setting(
        None, "most long prompts that share a step; they progress equally", needs="long_prefill_token_threshold"
    )
    max_num_seqs: int = setting(64, "most sequences that run at once")
    max_num_batched_tokens: int = setting(512, "most tokens in a step, decode rows and prefill chunks together")
    chunk_size: int | None = setting(
        None, "most prompt tokens of one sequence in a step; default: the whole budget",
        only_with=("policy", "chunked", "adaptive"), at_most="max_num_batched_tokens",
    )  # fmt: skip
    fill_buckets: bool = setting(True, "grow chunks to the bucket's edge, and cross no edge for a few tokens")
    max_preemptions: int = setting(3, "times a sequence may be preempted before it runs with all its blocks reserved")
    journal_steps: int = setting(4096, "steps whose decisions are remembered, for `jaxserve timeline` and /debug")
    max_waiting: int = setting(4096, "most requests that wait; one more is refused")
    max_waiting_tokens: int | None = setting(None, "most tokens of all that wait; a request over it is refused")

    def __post_init__(self) -> None:
        positive = (
            "max_num_seqs", "max_num_batched_tokens", "max_waiting", "max_waiting_tokens", "batch_size",
            "max_batch_size", "journal_steps", "batch_timeout_s", "ttft_slo_s", "tpot_slo_s", "priority_ageing_s",
            "shortest_ageing_s", "fair_input_weight", "fair_output_weight", "long_prefill_token_threshold",
            "max_long_partial_prefills",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a positive number")
        require(self.max_preemptions >= 0, "max_preemptions", self.max_preemptions, "0 or more")
        require(self.chunk_size is None or self.chunk_size > 0, "chunk_size", self.chunk_size, "a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketConfig:
    """The shapes a step can take; each combination is one compiled program. Empty tuples: chosen from the limits."""

    decode_buckets: tuple[int, ...] = setting((), "decode rows a program may have; default: powers of 4 and the limit")
    prefill_buckets: tuple[int, ...] = setting((), "prefill tokens a program may have; default: powers of 4 from 64")
    mixed_decode_buckets: tuple[int, ...] = setting((), "decode rows in programs that also prefill; default: two sizes")
    prefill_rows: int = setting(8, "most prompts whose chunks share a step")

    def __post_init__(self) -> None:
        for name in ("decode_buckets", "prefill_buckets", "mixed_decode_buckets"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            require(
                all(size > 0 for size in sizes) and sorted(set(sizes)) == list(sizes),
                name, sizes, "growing positive numbers",
            )  # fmt: skip
        require(self.prefill_rows > 0, "prefill_rows", self.prefill_rows, "a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How steps are compiled and driven."""

    attention_backend: Literal["auto", "reference", "mosaic_gpu", "triton"] = setting("auto", "paged attention kernels")
    attention_interpret: bool = setting(
        False, "run the attention kernels in Pallas' interpreter, on the CPU; for tests, very slow"
    )
    debug_tables: bool = setting(False, "check block tables and lengths on the device in every step; slower")
    overlap: bool = setting(True, "plan the next step while this one runs; stop conditions are learnt one step late")
    deterministic: bool = setting(False, "the same bits for a request alone or under load; slower")
    warmup: Literal["full", "progressive"] = setting(
        "full",
        "full: every program, run once, before the doors open; progressive: the widest two so, the rest while serving",
    )
    compilation_cache_dir: str | None = setting(
        "~/.cache/jaxserve/xla", "folder of JAX's persistent compilation cache; empty: none"
    )
    compile_threads: int = setting(0, "programs built at the same time; 0: one a processor")
    on_compile_after_warmup: Literal["count", "error"] = setting(
        "count", "a step that compiles a program: count it; or error: fail its requests too"
    )

    def __post_init__(self) -> None:
        require(self.compile_threads >= 0, "compile_threads", self.compile_threads, "a number of threads, or 0")
