"""The report of a `bench.gpu` run: one JSON file, a short table against the bars, and pictures where matplotlib is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu_worker import MODULES, lines

Results = dict[str, dict[str, dict[str, Any]]]  # part -> item -> result

BARS = [
    ("kernels", ("decode 64 x 2048", "decode 64 x 4096"), "share", 0.85, "of copy bandwidth"),
    ("kernels", ("prefill 1 x 4096 of 4096",), "share", 0.60, "of matmul rate"),
    ("steps", ("8b decode 64 x 4096", "8b decode 64 x 1024"), "share", 0.80, "of its floor"),
    ("steps", ("8b prefill 4096", "8b prefill 8192"), "matmul_share", 0.65, "of matmul rate"),
]


def write_report(out: Path) -> str:
    """Gathers the parts' logs of `out` into results.json, draws, and returns the table."""
    results = read(out)
    machine = json.loads((out / "machine.json").read_text()) if (out / "machine.json").exists() else {}
    (out / "results.json").write_text(json.dumps({"machine": machine, "parts": results}, indent=1) + "\n")
    text = "\n".join(_table(machine, results))
    (out / "table.txt").write_text(text + "\n")
    note = _draw(out, results)
    return f"{text}\n{note}" if note else text


def read(out: Path) -> Results:
    """The results of each part, by item, in the order in which they were measured."""
    return {
        name: {record["item"]: record["result"] for record in lines(out / f"{name}.jsonl") if "result" in record}
        for name in MODULES
    }


def _table(machine: dict[str, Any], results: Results) -> Iterator[str]:
    if machine.get("dry_run"):
        yield "A DRY RUN on tiny shapes: no figure below says anything about a machine."
    yield f"{machine.get('device', 'unknown device')}, JAX {machine.get('jax')}, {machine.get('date')}"
    rates = results["kernels"].get("machine", {})
    if "copy_bytes_per_s" in rates:
        yield (
            f"measured here: copy {rates['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
            f"bfloat16 matmul {rates['matmul_flops_per_s'] / 1e12:.0f} TFLOP/s"
        )
    checks = [r for r in results["correctness"].values() if "passed" in r]
    wrong = [name for name, r in results["correctness"].items() if "error" in r or r.get("passed") is False]
    yield f"correctness: {sum(r['passed'] for r in checks)} of {len(checks)} cases within their bar" + (
        f"; FAILED: {', '.join(wrong)}" if wrong else ""
    )
    for part in ("kernels", "steps"):
        yield from (_line(part, name, result) for name, result in results[part].items() if name != "machine")
    for part in MODULES:
        if reason := results[part].get("start", {}).get("error"):
            yield f"{part}: did not run: {reason}"
    for name, result in results["engine"].items():
        yield f"engine   {name:34s} {_rate(result)}"
    for name, result in results["shipping"].items():
        yield f"shipping {name:34s} {json.dumps({k: v for k, v in result.items() if k != 'took_s'})[:200]}"
    yield from _against_bars(results)


def _line(part: str, name: str, result: dict[str, Any]) -> str:
    if "s" not in result:
        return f"{part:8s} {name:34s} not measured: {str(result.get('error') or result.get('skipped'))[:90]}"
    more = f", {result['backend']}" if "backend" in result else ""
    if "floor_s" in result:
        more += f", floor {result['floor_s'] * 1e3:.3f} ms, host {result['host_dispatch_s'] * 1e3:.2f} ms"
        more += f", {result['command_buffers']} command buffers, compiled in {result['compile_s']:.0f} s"
    return f"{part:8s} {name:34s} {result['s'] * 1e3:9.3f} ms  {result['share']:6.1%}{more}"


def _rate(result: dict[str, Any]) -> str:
    if "output_tokens_per_s" not in result:
        return f"not measured: {str(result.get('error') or result.get('skipped'))[:90]}"
    text = f"{result['output_tokens_per_s']:9.0f} output tokens/s in {result['s']:.1f} s"
    if "step_s" in result:
        text += (
            f", step {result['step_s'] * 1e3:.2f} ms, of it not waiting for the device "
            f"{result['host_not_hidden_s'] * 1e3:.2f} ms, {result['compilations_after_warmup']} compiled after warm-up"
        )
    return text


def _against_bars(results: Results) -> Iterator[str]:
    for part, names, field, bar, what in BARS:
        for name in names:
            found = results[part].get(name, {}).get(field)
            verdict = "not measured" if found is None else f"{found:.1%} {'met' if found >= bar else 'MISSED'}"
            yield f"bar      {part} {name}: {bar:.0%} {what}: {verdict}"
    ours = results["engine"].get("engine 0.6b", {}).get("output_tokens_per_s")
    theirs = results["engine"].get("transformers 0.6b", {}).get("output_tokens_per_s")
    verdict = "not measured" if not ours or not theirs else f"{ours / theirs:.1f}x"
    yield f"bar      engine 0.6b: 4x transformers' continuous batching: {verdict}"


def _draw(out: Path, results: Results) -> str | None:
    try:
        import matplotlib
    except ImportError:
        return "no matplotlib here, so no pictures: python -m bench.gpu --report --out DIR draws them anywhere"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for part in ("kernels", "steps"):
        shares = {name: result["share"] for name, result in results[part].items() if "share" in result}
        if not shares:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(shares)))
        axes.barh(list(shares), [100 * share for share in shares.values()])
        axes.invert_yaxis()
        axes.set_xlabel("% of this machine's measured copy bandwidth or matmul rate")
        axes.set_title(part)
        figure.tight_layout()
        figure.savefig(out / f"{part}.png", dpi=120)
        pyplot.close(figure)
    return None
