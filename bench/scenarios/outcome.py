"""What a scenario found: rows, bars, and how they look as a table, as JSON and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.scenarios.bars import Bar


@dataclass(frozen=True, slots=True)
class Row:
    """`labels` say what ran; one row a seed."""

    labels: dict[str, str]
    seed: int
    figures: dict[str, float]


@dataclass
class Outcome:
    scenario: str
    stage: str
    rows: list[Row]
    bars: list[Bar]
    plot: tuple[str, ...] = ()
    """Figures to draw, one panel each."""
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return all(bar.met for bar in self.bars)

    def medians(self) -> list[tuple[dict[str, str], dict[str, float]]]:
        """Rows of equal labels as one: each figure's median over the seeds."""
        groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row.labels.items()), []).append(row)
        return [
            (dict(labels), {name: median(row.figures[name] for row in rows) for name in rows[0].figures})
            for labels, rows in groups.items()
        ]

    def text(self) -> str:
        lines = [f"{self.scenario} on {self.stage}; medians over {len({row.seed for row in self.rows})} seeds", ""]
        found = self.medians()
        names = [*found[0][0], *found[0][1]]
        table = [names] + [[*labels.values(), *map(_short, figures.values())] for labels, figures in found]
        widths = [max(len(line[i]) for line in table) for i in range(len(names))]
        first = len(found[0][0])
        for line in table:
            cells = [c.ljust(w) if i < first else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            lines.append("  ".join(cells))
        return "\n".join([*lines, "", *map(str, self.bars), *self.notes])

    def markdown(self) -> str:
        found = self.medians()
        names = [*found[0][0], *found[0][1]]
        lines = ["| " + " | ".join(names) + " |", "| " + " | ".join(["---"] * len(names)) + " |"]
        lines += [
            "| " + " | ".join([*labels.values(), *map(_short, figures.values())]) + " |" for labels, figures in found
        ]
        lines += ["", "| bar | median | over the seeds | wanted | |", "| --- | --- | --- | --- | --- |"]
        for bar in self.bars:
            wanted = "reported" if bar.bar is None else f"{'at least' if bar.at_least else 'at most'} {bar.bar:g}"
            verdict = "" if bar.bar is None else "met" if bar.met else "**missed**"
            spread = f"{min(bar.values):.3f} - {max(bar.values):.3f}"
            lines.append(f"| {bar.name} | {bar.median:.3f} | {spread} | {wanted} | {verdict} |")
        return "\n".join(lines) + "\n"

    def to_json(self, machine: dict[str, Any]) -> str:
        stored = {
            "scenario": self.scenario,
            "stage": self.stage,
            "machine": machine,
            "rows": [row.labels | {"seed": row.seed} | row.figures for row in self.rows],
            "bars": [
                {"name": b.name, "values": list(b.values), "bar": b.bar, "at_least": b.at_least, "met": b.met}
                for b in self.bars
            ],
            "notes": self.notes,
        }
        return json.dumps(stored, indent=1) + "\n"

    def draw(self, path: Path) -> None:
        """One panel a figure: bars by the last label, grouped by the others."""
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        found = self.medians()
        groups = list(dict.fromkeys(" ".join(list(labels.values())[:-1]) for labels, _ in found))
        series = list(dict.fromkeys(list(labels.values())[-1] for labels, _ in found))
        size = (6.4 * len(self.plot) + 1.2, 4.2)
        figure, panels = plt.subplots(1, len(self.plot), figsize=size, squeeze=False, layout="constrained")
        for panel, name in zip(panels[0], self.plot, strict=True):
            _bars(panel, name, found, groups, series)
        figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
        figure.suptitle(f"{self.scenario}: {self.stage}", fontsize=9)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _bars(panel: Any, name: str, found: Sequence[Any], groups: list[str], series: list[str]) -> None:
    width = 0.8 / len(series)
    for j, one in enumerate(series):
        heights = [0.0] * len(groups)
        for labels, figures in found:
            *outer, inner = labels.values()
            if inner == one:
                heights[groups.index(" ".join(outer))] = figures[name]
        panel.bar([i + j * width for i in range(len(groups))], heights, width, label=one)
    panel.set_xticks([i + 0.4 - width / 2 for i in range(len(groups))], groups, fontsize=8)
    panel.set_title(name, fontsize=9)
    values = [f[name] for _, f in found if f[name] > 0]
    if values and max(values) > 30 * min(values):
        panel.set_yscale("log")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
