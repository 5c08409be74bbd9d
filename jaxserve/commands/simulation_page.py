"""A simulation's report: a table for the terminal, and a page of tables and plots that opens from the disk."""

from html import escape
from typing import Any

from jaxserve.commands.svg_charts import Chart
from jaxserve.commands.tables import table
from jaxserve.metrics.slo import METRICS
from jaxserve.metrics.summary import GroupSummary
from jaxserve.sim.simulate import SimReport

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "queue": "queue wait"}
_PERCENTS = (50, 90, 99)
Rows = list[list[object]]


def terminal(report: SimReport) -> str:
    """Latencies in milliseconds, by tenant; throughput; the engine; what could not be served."""
    groups = _groups(report)
    short: tuple[str, ...] = ("ttft", "tpot", "itl")
    parts = [
        table(["", "requests", *(f"{_NAMES[m]} p{p} ms" for m in short for p in _PERCENTS)],
              [[name, group.offered, *_milliseconds(group, short)] for name, group in groups]),
        table(["", *(f"{_NAMES[m]} p{p} ms" for m in ("e2e", "queue") for p in _PERCENTS)],
              [[name, *_milliseconds(group, ("e2e", "queue"))] for name, group in groups]),
        table(["", *_SERVICE], [[name, *_service(group)] for name, group in groups]),
        table(["engine", ""], _engine(report)),
    ]  # fmt: skip
    if report.cannot_fit:
        rows = [[number, why] for number, why in report.cannot_fit[:20]]
        more = report.summary.all.refused["cannot_fit"] - len(rows)
        parts.append(table(["request", "cannot be served"], rows) + (f"\n... and {more} more" if more else ""))
    parts.append(f"step times: {report.cost_source}")
    return "\n\n".join(parts)


def page(report: SimReport, title: str, settings: dict[str, Any]) -> str:
    """One HTML file that needs no other."""
    groups = _groups(report)
    tables = [
        ("Latency, ms", ["", *(f"p{p}" for p in _PERCENTS)],
         [[f"{name}: {_NAMES[m]}" if len(groups) > 1 else _NAMES[m], *_milliseconds(group, (m,))]
          for name, group in groups for m in METRICS]),
        ("Service", ["", *_SERVICE], [[name, *_service(group)] for name, group in groups]),
        ("Engine", ["", ""], _engine(report)),
        ("Run", ["", ""], _run(settings)),
    ]  # fmt: skip
    if report.cannot_fit:
        tables.append(("Cannot be served", ["request", "why"], [list(row) for row in report.cannot_fit]))
    body = "".join(f"<h2>{escape(name)}</h2>{_html_table(head, rows)}" for name, head, rows in tables)
    charts = "".join(f"<figure>{svg}</figure>" for chart in _charts(report) if (svg := chart.svg()))
    source = escape(report.cost_source)
    return _PAGE.format(title=escape(title), source=source, charts=charts, tables=body, style=_STYLE)


def _run(settings: dict[str, Any]) -> Rows:
    """What was asked: the workload's words, and every setting that was given."""
    asked = settings.get("workload", {}) | {name: value for name, value in settings.items() if name != "workload"}
    return [[name, value] for name, value in asked.items() if value != ""]


def _groups(report: SimReport) -> list[tuple[str, GroupSummary]]:
    tenants = report.summary.tenants
    return [("all", report.summary.all), *(sorted(tenants.items()) if len(tenants) > 1 else [])]


def _milliseconds(group: GroupSummary, metrics: tuple[str, ...]) -> list[object]:
    return [1e3 * value for metric in metrics for value in group.distribution(metric).percentiles(_PERCENTS)]


_SERVICE = (
    "completed", "refused", "failed", "output tokens/s", "requests/s", "goodput", "SLO", "prefix hits", "preemptions",
)  # fmt: skip


def _service(group: GroupSummary) -> list[object]:
    refused = ", ".join(f"{count} {reason}" for reason, count in group.refused.items()) or "0"
    rate = group.completed / group.duration_s if group.duration_s else 0.0
    goodput = None if group.goodput is None else f"{group.goodput:.2%}"
    hits = f"{group.cached_tokens / group.prompt_tokens:.1%}" if group.prompt_tokens else None
    return [group.completed, refused, group.failed, group.throughput, rate, goodput, group.slo, hits, group.preemptions]


def _engine(report: SimReport) -> Rows:
    gauges = report.gauges
    rows: Rows = [
        ["simulated seconds", report.summary.all.duration_s],
        ["steps", report.steps],
        ["utilization", f"{report.utilization:.1%}"],
        ["padding", f"{report.padding:.1%}"],
        ["KV pool in use, mean", f"{gauges.kv_usage:.1%}"],
        ["KV pool in use, most", f"{gauges.max_kv_usage:.1%}"],
        ["most running", gauges.max_running],
        ["most waiting", gauges.max_waiting],
    ]
    if report.replicas > 1:
        rows.append([f"requests by replica ({report.router})", ", ".join(map(str, report.by_replica))])
    return rows


def _charts(report: SimReport) -> list[Chart]:
    groups = _groups(report)
    charts = [
        Chart(
            f"{_NAMES[metric]}: share of {'gaps' if metric == 'itl' else 'requests'} within",
            "seconds",
            "share",
            {name: group.distribution(metric).curve() for name, group in groups if len(group.distribution(metric))},
            log_x=True,
            y_max=1.0,
            rising=True,
        )
        for metric in ("ttft", "tpot", "itl", "e2e")
    ]
    series = report.gauges.to_json()
    width = series["width_s"]

    def line(name: str) -> list[tuple[float, float]]:
        return [((i + 0.5) * width, value) for i, value in enumerate(series[name])]

    charts.append(Chart("Requests", "seconds", "requests", {"running": line("running"), "waiting": line("waiting")}))
    charts.append(Chart("KV pool in use", "seconds", "share", {"": line("kv_usage")}, y_max=1.0))
    charts.append(Chart("Output tokens a second", "seconds", "tokens/s", {"": line("tokens_per_s")}))
    return charts


def _html_table(head: list[str], rows: Rows) -> str:
    def cell(value: object) -> str:
        shown = "-" if value is None or value != value else f"{value:,.4g}" if isinstance(value, float) else str(value)
        return f"<td>{escape(shown)}</td>"

    headings = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{headings}</tr>{lines}</table></div>'


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222;
  background: #fff } h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 1.6rem }
.source { background: #fff4d6; border-left: 4px solid #edae49; padding: .5rem .8rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem }
figure { margin: 0 } .wide { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } svg text { font: 11px system-ui, sans-serif; fill: #444 }
svg .title { font-size: 14px; font-weight: 600; fill: #222 } svg .y { text-anchor: end } svg .x { text-anchor: middle }
svg .key { text-anchor: end; font-weight: 600 } svg .side { text-anchor: middle } svg .grid { stroke: #e5e5e5 }
svg polyline { fill: none; stroke-width: 2 }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p class="source">Simulated. Step times: {source}</p>
<div class="charts">{charts}</div>{tables}</body></html>
"""
