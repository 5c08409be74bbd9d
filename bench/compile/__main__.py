"""Compile for a GPU that is not here: `python -m bench.compile --target h200`.

Every attention kernel over the head dimensions, page sizes, groups and page types, then the model program of an 8B and
a 1B Llama for every bucket of a configuration, as the engine would build them. Printed for each: compile time,
arguments, aliased bytes, temporaries, kernels, registers, spills, shared memory. Exits with 1 on

    a spill in an attention kernel              a cache that is not wholly aliased, or an array like it that is new
    temporaries above a step's activations      a decode kernel of which an SM holds too few to fill the memory pipe
    a prefill kernel with too few threads on an SM to hide its softmax

and with 2 where JAX's CUDA plugin is not installed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.shared.flags import file_to_write
from jaxserve.commands.results import write_text
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import JaxserveError
from jaxserve.core.target import find_target


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        target = find_target(given.target)
        with tempfile.TemporaryDirectory(prefix="jaxserve-compile-") as folder:
            from bench.compile.kernel_report import dump_to

            dump_to(Path(folder))  # before JAX is loaded
            from bench.compile.ahead_of_time import CompileRun

            config = EngineConfig.from_toml(given.config).replace(kv_cache_dtype=given.kv_cache_dtype)
            run = CompileRun(target, Path(folder), given.backend, config)
            if given.only != "steps":
                run.kernels([int(h) for h in given.head_dims.split(",")], small=given.small)
            if given.only != "kernels":
                run.steps(given.models.split(","), small=given.small)
    except JaxserveError as error:
        print(f"bench.compile: {error}", file=sys.stderr)
        return 2
    if given.json:
        rows = [asdict(row) for row in run.rows]
        write_text(given.json, json.dumps({"target": target.name, "rows": rows}, indent=1))
    failed = [row for row in run.rows if row.problems]
    print(f"\n{len(run.rows)} programs for {target.device}, {len(failed)} with problems")
    for row in failed:
        print(f"  {row.name}: {'; '.join(row.problems)}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="h200", help="a name in configs/targets, or a file (default h200)")
    parser.add_argument("--config", default="configs/h200.toml", help="whose buckets (default configs/h200.toml)")
    parser.add_argument("--backend", default="auto", help="attention backend; auto: what that GPU would take")
    parser.add_argument("--kv-cache-dtype", default="auto", help="of the steps: auto, float8_e4m3fn or int8")
    parser.add_argument("--models", default="8b,1b", help="of bench/shared/models.py (default 8b,1b)")
    parser.add_argument("--head-dims", default="64,96,128,256", help="of the kernels (default 64,96,128,256)")
    parser.add_argument("--only", choices=("kernels", "steps"), help="one part")
    parser.add_argument("--small", action="store_true", help="a few kernels, and a two-layer model: for CI")
    parser.add_argument("--json", type=file_to_write, help="write the table here as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
