"""The report of a `bench.gpu` run: one JSON file, a short table against the bars, and pictures where matplotlib is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.worker import MODULES, lines

Results = dict[str, dict[str, dict[str, Any]]]  # part -> item -> result

BARS = [
    ("kernels", ("decode 64 x 2048", "decode 64 x 4096", "decode 64 x 8192"), "share", 0.85, "of copy bandwidth"),
    ("kernels", ("prefill 1 x 4096 of 4096",), "share", 0.60, "of matmul rate"),
    ("steps", ("8b decode 64 x 4096", "8b decode 64 x 1024"), "share", 0.80, "of its floor"),
    ("steps", ("8b prefill 2048", "8b prefill 4096", "8b prefill 8192"), "matmul_share", 0.65, "of matmul rate"),
]
AGAINST_TRANSFORMERS = 4.0


def write_report(out: Path) -> str:
    """Gathers the parts' logs of `out` into results.json, draws, and returns the table."""
    results = read(out)
    machine = json.loads((out / "machine.json").read_text()) if (out / "machine.json").exists() else {}
    (out / "results.json").write_text(json.dumps({"machine": machine, "parts": results}, indent=1) + "\n")
    text = "\n".join(_table(machine, results))
    (out / "table.txt").write_text(text + "\n")
    note = _draw(out, machine, results)
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
            f"bfloat16 matmul {rates['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s"
        )
    yield _correctness(results["correctness"])
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


def _correctness(found: dict[str, dict[str, Any]]) -> str:
    """How many cases are right; by name those that are wrong, that ended in an error, and what was not reached."""
    passed = [r["passed"] for r in found.values() if "passed" in r]
    text = (
        f"correctness: {sum(passed)} of {len(passed)} cases within their bar" if passed else "correctness: not measured"
    )
    for what, names in (
        ("WRONG", [name for name, r in found.items() if r.get("passed") is False]),
        ("ENDED IN AN ERROR", [name for name, r in found.items() if "error" in r]),
        ("not measured", [f"{name} ({r['skipped']})" for name, r in found.items() if "skipped" in r]),
    ):
        text += f"; {what}: {', '.join(names)}" if names else ""
    return text


def _line(part: str, name: str, result: dict[str, Any]) -> str:
    if "s" not in result:
        return f"{part:8s} {name:34s} {_not_measured(result)}"
    more = f", {result['backend']}" if "backend" in result else ""
    if "floor_s" in result:
        more += f", floor {result['floor_s'] * 1e3:.3f} ms, host {result['host_dispatch_s'] * 1e3:.2f} ms"
        buffers = result["command_buffers"]
        more += f", command buffers {'not measured' if buffers is None else buffers}"
        more += f", compiled in {result['compile_s']:.0f} s"
    return f"{part:8s} {name:34s} {result['s'] * 1e3:9.3f} ms  {result['share']:6.1%} of {_whole(part, name)}{more}"


def _whole(part: str, name: str) -> str:
    """What a share is a share of."""
    return "its floor" if part == "steps" else "matmul rate" if "prefill" in name else "copy bandwidth"


def _not_measured(result: dict[str, Any]) -> str:
    return f"not measured: {str(result.get('error') or result.get('skipped'))[:90]}"


def _rate(result: dict[str, Any]) -> str:
    if "output_tokens_per_s" not in result:
        return _not_measured(result)
    text = f"{result['output_tokens_per_s']:9.0f} output tokens/s in {result['s']:.1f} s"
    if "step_s" in result:
        text += (
            f", step {result['step_s'] * 1e3:.2f} ms, of it not waiting for the device "
            f"{result['host_not_hidden_s'] * 1e3:.2f} ms, {result['compilations_after_warmup']} compiled after warm-up"
        )
    return text


def _against_bars(results: Results) -> Iterator[str]:
    verdicts = {"met": 0, "MISSED": 0, "not measured": 0}

    def line(what: str, found: float | None, bar: float, form: str) -> str:
        verdict = "not measured" if found is None else "met" if found >= bar else "MISSED"
        verdicts[verdict] += 1
        return f"bar      {what}: " + (verdict if found is None else f"{found:{form}} {verdict}")

    for part, names, field, bar, of in BARS:
        for name in names:
            yield line(f"{part} {name}: {bar:.0%} {of}", results[part].get(name, {}).get(field), bar, ".1%")
    ours = results["engine"].get("engine 0.6b", {}).get("output_tokens_per_s")
    theirs = results["engine"].get("transformers 0.6b", {}).get("output_tokens_per_s")
    ratio = ours / theirs if ours and theirs else None
    bar = AGAINST_TRANSFORMERS
    yield line(f"engine 0.6b: {bar:.0f} times transformers' continuous batching", ratio, bar, ".2f")
    yield "bars: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())


def _draw(out: Path, machine: dict[str, Any], results: Results) -> str | None:
    """kernels.png and steps.png: shares as horizontal bars, and a mark where one has a bar to meet."""
    try:
        import matplotlib
    except ImportError:
        return "no matplotlib here, so no pictures: python -m bench.gpu --report --out DIR draws them anywhere"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    where = f"{machine.get('device', 'unknown device')}, JAX {machine.get('jax')}, {machine.get('date')}"
    if machine.get("dry_run"):
        where = f"A DRY RUN on tiny shapes: figures mean nothing ({where})"
    for part in ("kernels", "steps"):
        shares = {name: result["share"] for name, result in results[part].items() if "share" in result}
        if not shares:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.3 * len(shares)))
        axes.barh(list(shares), [100 * share for share in shares.values()])
        bars = {name: 100 * bar for which, names, field, bar, _ in BARS for name in names
                if which == part and field == "share" and name in shares}  # fmt: skip
        if bars:
            axes.scatter(list(bars.values()), list(bars), marker="|", s=200, color="black", zorder=3, label="its bar")
            axes.legend(loc="lower right")
        axes.invert_yaxis()
        axes.set_xlabel(
            "% of the least time that a step could take"
            if part == "steps"
            else "% of the measured copy bandwidth (decode) or matmul rate (prefill)"
        )
        axes.set_title(f"{part}\n{where}", fontsize=10)
        figure.tight_layout()
        figure.savefig(out / f"{part}.png", dpi=120)
        pyplot.close(figure)
    return None
