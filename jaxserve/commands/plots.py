"""Plots that one can put on a slide: one look, one palette, sizes that can be read from the back row."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxserve.commands.results import expect_file, written
from jaxserve.core.errors import ConfigError

PALETTE = ("#1b6ca8", "#d1495b", "#2a9d5c", "#edae49", "#6a4c93", "#00798c", "#8d5b4c", "#7f8c8d")
"""Told apart by most colour-blind readers."""
_MISSING = "plots need matplotlib: pip install 'jaxserve[bench]'"


def expect_plots(path: Path | None) -> None:
    """ConfigError if plots are asked for (`path`: where) and matplotlib is not installed: said before the work."""
    if path is not None and find_spec("matplotlib") is None:
        raise ConfigError(_MISSING)


@contextmanager
def plot(path: Path, title: str, note: str = "", columns: int = 1) -> Iterator[Any]:
    """A figure of `columns` axes, a PNG written to `path` at the end. `note` stands under it: where figures come from.

    Raises:
      ConfigError: matplotlib is not installed, or nothing can be written there.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    look: dict[str, Any] = {
        "font.size": 13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 2.2,
        "lines.markersize": 7,
        "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
        "legend.frameon": False,
    }
    with pyplot.rc_context(look):
        figure, axes = pyplot.subplots(1, columns, figsize=(4.2 + 4.9 * columns, 5.4), layout="constrained")
        figure.suptitle(title, fontsize=16, fontweight="bold", x=0.02, ha="left")
        try:
            yield axes
            if note:
                figure.supxlabel(note, fontsize=9, color="#555555", x=0.02, ha="left")
            expect_file(path)
            with written(path):
                figure.savefig(path, dpi=150, format="png")
        finally:
            pyplot.close(figure)


def plain_ticks(axis: Any) -> None:
    """On a logarithmic axis that has its limits: round numbers, written out, and no more than have room."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")  # and not 2 x 10^2
