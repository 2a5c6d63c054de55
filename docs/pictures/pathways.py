"""Draws pathways.png: how the error travels in backpropagation, feedback alignment and PFA."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display, write
from pfa_convert.reporting.style import colour_of

LOWER, UPPER = 1.0, 3.0
"""Heights of a layer's input and output neurons."""

MIDDLE, DOWN = 1.85, 2.9
"""The layer's centre, and where the error goes down."""

FORWARD = "0.35"


def draw(path: Path) -> None:
    """Write the picture."""
    figure, panels = pyplot_without_display().subplots(1, 3, figsize=(11, 3.1), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    _panel(panels[0], "backpropagation", "bp", "$W^T$", "the forward weights, transposed")
    _panel(panels[1], "feedback alignment (fa)", "fa", "$F^T$", "fixed and random")
    _product(panels[2])
    write(figure, path)


def _panel(panel: Any, title: str, rule: str, name: str, said: str) -> None:
    _layer(panel, title)
    _arrow(panel, (DOWN, UPPER - 0.17), (DOWN, LOWER + 0.17), name, colour_of(rule))
    _said(panel, said, colour_of(rule))


def _product(panel: Any) -> None:
    colour = colour_of("pfa")
    _layer(panel, "product feedback alignment (pfa)")
    _neurons(panel, [2.26 + 0.32 * place for place in range(5)], (LOWER + UPPER) / 2, colour, 0.11)
    panel.text(3.75, 2.0, "middle\nneurons", fontsize=8, color=colour, va="center", ha="left")
    _arrow(panel, (DOWN, UPPER - 0.17), (DOWN, 2.11), "$B^T$", colour)
    _arrow(panel, (DOWN, 1.89), (DOWN, LOWER + 0.17), "$R^T$", colour)
    _said(panel, "$F = BR$: $B$ fixed and random, $R$ learns", colour)


def _said(panel: Any, words: str, colour: str) -> None:
    """Write what the error goes through below the layer."""
    panel.text(MIDDLE, 0.1, words, ha="center", fontsize=10, color=colour)


def _layer(panel: Any, title: str) -> None:
    panel.set(xlim=(-0.75, 4.45), ylim=(0.0, 3.65), aspect="equal")
    panel.set_axis_off()
    panel.set_title(title, fontsize=12)
    for height, name in ((LOWER, "$x$"), (UPPER, "$y$")):
        _neurons(panel, [0.8 + 0.7 * place for place in range(4)], height, FORWARD)
        panel.text(0.4, height, name, ha="right", va="center", fontsize=12)
    _arrow(panel, (0.8, LOWER + 0.17), (0.8, UPPER - 0.17), "$W$", FORWARD, -0.35)
    panel.text(DOWN, UPPER + 0.32, r"error $\delta = \partial L / \partial y$", ha="center", fontsize=10)
    panel.text(DOWN, LOWER - 0.48, "error sent down", ha="center", fontsize=10)


def _neurons(panel: Any, places: list[float], height: float, colour: str, radius: float = 0.17) -> None:
    from matplotlib.patches import Circle

    for place in places:
        panel.add_patch(Circle((place, height), radius, facecolor="white", edgecolor=colour, zorder=3))


def _arrow(
    panel: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    name: str,
    colour: str,
    aside: float = 0.3,
) -> None:
    panel.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 1, "shrinkB": 1},
    )
    middle = ((start[0] + end[0]) / 2 + aside, (start[1] + end[1]) / 2)
    panel.text(*middle, name, color=colour, fontsize=13, ha="center", va="center", zorder=4)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
