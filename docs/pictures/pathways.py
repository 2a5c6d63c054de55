"""Draws pathways.png: how the error travels in backpropagation, feedback alignment and PFA."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display, write
from pfa_convert.reporting.style import colour_of

LOWER, UPPER = 1.0, 3.0
"""Heights of a layer's input and output neurons."""

FORWARD = "0.35"


def draw(path: Path) -> None:
    """Write the picture."""
    figure, panels = pyplot_without_display().subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    _panel(panels[0], "backpropagation", "bp", "$W^T$", "the forward weights, transposed")
    _panel(panels[1], "feedback alignment (fa)", "fa", "$F^T$", "fixed and random")
    _product(panels[2])
    write(figure, path)


def _panel(panel: Any, title: str, rule: str, name: str, said: str) -> None:
    _layer(panel, title)
    _arrow(panel, (2.9, UPPER), (2.9, LOWER), name, colour_of(rule))
    panel.text(1.85, 0.05, said, ha="center", fontsize=9, color=colour_of(rule))


def _product(panel: Any) -> None:
    colour = colour_of("pfa")
    _layer(panel, "product feedback alignment (pfa)")
    _neurons(panel, [2.55 + 0.32 * place for place in range(5)], (LOWER + UPPER) / 2, colour, 0.1)
    panel.text(4.1, 1.75, "middle\nneurons", fontsize=8, color=colour, va="center", ha="left")
    _arrow(panel, (2.9, UPPER), (3.1, 2.15), "$B^T$", colour)
    _arrow(panel, (3.1, 1.85), (2.9, LOWER), "$R^T$", colour)
    panel.text(2.0, 0.05, "$F = BR$: $B$ fixed and random, $R$ learns", ha="center", fontsize=9, color=colour)


def _layer(panel: Any, title: str) -> None:
    panel.set(xlim=(0.0, 5.1), ylim=(-0.15, 3.65), aspect="equal")
    panel.set_axis_off()
    panel.set_title(title, fontsize=11)
    _neurons(panel, [0.8 + 0.7 * place for place in range(4)], LOWER, FORWARD)
    _neurons(panel, [0.8 + 0.7 * place for place in range(4)], UPPER, FORWARD)
    _arrow(panel, (1.15, LOWER), (1.15, UPPER), "$W$", FORWARD, -0.35)
    panel.text(0.4, LOWER, "$x$", ha="right", va="center")
    panel.text(0.4, UPPER, "$y$", ha="right", va="center")
    panel.text(2.5, UPPER + 0.35, r"error $\delta = \partial L / \partial y$", ha="left", fontsize=9)
    panel.text(2.5, LOWER - 0.45, "error sent down", ha="left", fontsize=9)


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
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2, "shrinkA": 9, "shrinkB": 9},
    )
    middle = ((start[0] + end[0]) / 2 + aside, (start[1] + end[1]) / 2)
    panel.text(*middle, name, color=colour, fontsize=13, ha="center", va="center", zorder=4)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
