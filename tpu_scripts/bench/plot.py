"""The times as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tpu_scripts.bench.peers import CALLS, PEERS
from tpu_scripts.bench.report import digits

_MODES = {
    "eager": "eager",
    "function": "tf.function",
    "jit": "jit_compile=True",
    "loop": "compiled loop",
}
_INCHES = 8  # a README's width at 100 dots per inch
_BAR_INCHES = 0.17
_HEAD_INCHES = 0.9


def draw(results: Sequence[dict[str, Any]], path: str) -> None:
    """Draws the milliseconds of a step, a panel for each case.

    A panel has a bar for each peer and way of calling, with the quartiles'
    distance, and a line where the pass in C is.

    Args:
      results: as `runs.run` returns them. Accumulation is left out.
      path: the PNG file to write.

    Raises:
      ValueError: there is nothing to draw.
    """
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        if result["mode"] in CALLS and _figures(result):
            panels.setdefault((result["case"], result["gradients"]), [])
            panels[result["case"], result["gradients"]].append(result)
    if not panels:
        raise ValueError("no peer has a time")
    bars = [sum(len(_bars(r)) for r in panel) for panel in panels.values()]
    heights = [_HEAD_INCHES + _BAR_INCHES * count for count in bars]
    figure = Figure(
        figsize=(_INCHES, sum(heights)), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels.values(), strict=True):
        _draw_panel(axis, panel)
    figure.savefig(path, format="png", dpi=150)


def _figures(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of the peers that have a time."""
    return {
        name: figure
        for name, figure in result["peers"].items()
        if "failed" not in figure
    }


def _bars(result: dict[str, Any]) -> list[str]:
    return [name for name in _figures(result) if name != "c-floor"]


def _draw_panel(axis: Axes, panel: Sequence[dict[str, Any]]) -> None:
    position, ticks, drawn = 0.0, {}, set()
    for name in PEERS:
        first = position
        for result in panel:
            if name in _bars(result):
                _draw_bar(axis, position, result, name, drawn)
                position += 1
        if position > first:
            ticks[(first + position - 1) / 2] = PEERS[name].label
            position += 0.6
    floors = [
        _figures(result)["c-floor"]["median_seconds"]
        for result in panel
        if "c-floor" in _figures(result)
    ]
    if floors:
        floor = 1e3 * float(np.median(floors))
        axis.axvline(floor, color="black", linestyle="--", linewidth=1)
        axis.plot(
            [], [], "k--", linewidth=1, label=f"one pass in C: {digits(floor)}"
        )
    axis.set_yticks([*ticks], [*ticks.values()])
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.02)
    axis.set_xlim(left=0)
    axis.set_xlabel("milliseconds a step")
    case = panel[0]
    axis.set_title(
        f"{case['case']}: {case['parameters']:,} parameters in "
        f"{case['variables']:,} variables, gradients {case['gradients']}",
        fontsize="medium",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="best", fontsize="small", frameon=False)


def _draw_bar(
    axis: Axes,
    position: float,
    result: dict[str, Any],
    name: str,
    drawn: set[str],
) -> None:
    figure, mode = result["peers"][name], result["mode"]
    middle = 1e3 * figure["median_seconds"]
    axis.barh(
        position,
        middle,
        height=0.9,
        xerr=middle * figure["spread"] / 2,
        error_kw={"elinewidth": 0.8, "ecolor": "dimgray"},
        color=f"C{CALLS.index(mode)}",
        label=None if mode in drawn else _MODES[mode],
    )
    axis.annotate(
        digits(middle),
        (middle * (1 + figure["spread"] / 2), position),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize="x-small",
    )
    drawn.add(mode)
