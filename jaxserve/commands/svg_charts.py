"""Line charts as SVG text, for pages that need no other file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jaxserve.commands.plots import PALETTE

_W, _H = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 30, 40

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines by name over common axes; `log_x`: a logarithmic x axis, on which zeros are left out; `rising`: they all
    end at the top, and their names stand below."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Points]
    log_x: bool = False
    y_max: float | None = None
    rising: bool = False

    def svg(self) -> str:
        points = [p for line in self.lines.values() for p in line if not self.log_x or p[0] > 0]
        if not points:
            return ""
        low, high = _range([x for x, _ in points], self.log_x)
        top = self.y_max or max(y for _, y in points) or 1.0

        def place(x: float, y: float) -> str:
            share = (_scale(x, self.log_x) - _scale(low, self.log_x)) / (
                _scale(high, self.log_x) - _scale(low, self.log_x)
            )
            return f"{_LEFT + share * (_W - _LEFT - _RIGHT):.1f},{_H - _BOTTOM - y / top * (_H - _TOP - _BOTTOM):.1f}"

        parts = [f'<svg viewBox="0 0 {_W} {_H}" role="img"><title>{escape(self.title)}</title>']
        parts.append(f'<text class="title" x="{_LEFT}" y="16">{escape(self.title)}</text>')
        for y in _ticks(0.0, top):
            _, at = place(low, y).split(",")
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at}" y2="{at}"/>')
            parts.append(f'<text class="y" x="{_LEFT - 6}" y="{float(at) + 4:.1f}">{_short(y)}</text>')
        for x in _decades(low, high) if self.log_x else _ticks(low, high):
            at, _ = place(x, 0.0).split(",")
            parts.append(f'<text class="x" x="{at}" y="{_H - _BOTTOM + 16}">{_short(x)}</text>')
        middle = (_LEFT + _W - _RIGHT) / 2
        parts.append(f'<text class="x" x="{middle}" y="{_H - 6}">{escape(self.x_label)}</text>')
        parts.append(f'<text class="side" transform="translate(12,{_H / 2}) rotate(-90)">{escape(self.y_label)}</text>')
        for i, (name, line) in enumerate(self.lines.items()):
            colour = PALETTE[i % len(PALETTE)]
            path = " ".join(place(x, y) for x, y in line if not self.log_x or x > 0)
            parts.append(f'<polyline stroke="{colour}" points="{path}"/>')
            if len(self.lines) > 1:
                at = _H - _BOTTOM - 8 - 15 * (len(self.lines) - 1 - i) if self.rising else _TOP + 4 + 15 * i
                style = f"fill: {colour}"  # a page's own style would go over the attribute of that name
                parts.append(f'<text class="key" style="{style}" x="{_W - _RIGHT}" y="{at}">{escape(name)}</text>')
        return "".join([*parts, "</svg>"])


def _scale(x: float, log: bool) -> float:
    return math.log10(x) if log else x


def _range(values: list[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high > low:
        return low, high
    return (low / 2, high * 2) if log else (low, high + 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * step) <= 5.5)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, three at least."""
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [tick for e in exponents for m in multiples if low <= (tick := m * 10.0**e) <= high]
        if len(ticks) >= 3:
            return ticks
    return _ticks(low, high)


def _short(value: float) -> str:
    if abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 10_000 else f"{value / 1000:,.4g}k"
