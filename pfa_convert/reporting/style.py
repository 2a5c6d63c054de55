"""How every figure looks: one colour and one marker for each rule, angles from 0 to 90, titles in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

COLOURS = {
    "bp": "#000000",
    "pfa": "#0072B2",
    "pfa-o": "#56B4E9",
    "kp": "#009E73",
    "usf": "#E69F00",
    "dfa": "#CC79A7",
    "fa": "#D55E00",
    "brsf": "#803000",
    "frsf": "#882255",
    "wm": "#332288",
    "ia": "#8C1AFF",
    "sa": "#117733",
}
"""A colour for each rule, the first seven Okabe and Ito's; apart for colour-blind eyes as well."""

OTHERS = ("#6E6E6E", "#8C6D00", "#5D3A9B", "#004D40")
"""Colours for rules that somebody else has registered."""

MARKERS = "osD^vPX<>p*h"
"""Markers in the order of `COLOURS`, for those who see no colours at all."""

DASHES = ("-", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 1, 2, 1, 2)))
"""Lines for variants of one rule beside other rules; even dashes are the paper's."""

ANGLES = "viridis_r"
"""The colour map of angles from 0 to 90: bright where the error is aligned."""

SPREAD = "± 1 standard deviation"

EXPANSION_LABEL = r"expansion: middle neurons per output, $N_\mathrm{mid} / N_\mathrm{out}$"

MOST_NAMED = 6
"""More layers than this get a colour bar, or a heat map, instead of a legend."""

RIGHT_ANGLE = 90.0


def colour_of(rule: str) -> str:
    """Return the colour of a rule, the same in every figure."""
    return COLOURS.get(rule) or OTHERS[crc32(rule.encode()) % len(OTHERS)]


def marker_of(rule: str) -> str:
    """Return the marker of a rule, the same in every figure."""
    return MARKERS[list(COLOURS).index(rule)] if rule in COLOURS else "d"


def shades_of(rule: str, count: int) -> list[tuple[float, ...]]:
    """Return `count` shades of a rule's colour from light to full, for variants of one rule."""
    text = colour_of(rule)
    full = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    shares = [1 - 0.6 * (count - 1 - index) / max(1, count - 1) for index in range(count)]
    return [tuple(1 - share * (1 - channel) for channel in full) for share in shares]


def layer_colours(count: int) -> list[Any]:
    """Return a colour for each layer, dark at the input, bright at the output."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * index / max(1, count - 1)) for index in range(count)]


def band_handle() -> Any:
    """Return what stands for a band of one standard deviation in a legend."""
    from matplotlib.patches import Patch

    return Patch(color="gray", alpha=0.25, linewidth=0)


def angle_axis(axis: Any, angles: Iterable[float]) -> None:
    """Give a y axis the range of angles, 0 to 90 degrees; only an obtuse angle makes it longer."""
    largest = max((angle for angle in angles if not math.isnan(angle)), default=0.0)
    axis.set_ylim(0, max(RIGHT_ANGLE, 1.03 * largest if largest > RIGHT_ANGLE + 1 else 0))
    axis.set_yticks(range(0, int(max(RIGHT_ANGLE, largest)) + 1, 30))


def in_words(names: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return a title for each label: its rule and those options that set it apart from others of that rule.

    Where all have one rule, the title leaves it out: `expansion 1`, not `pfa-1`.

    Args:
        names: by label, the rule and its options.
    """
    one_rule = len({rule for rule, _ in names.values()}) == 1
    titles = {}
    for label, (rule, options) in names.items():
        alike = [others for name, others in names.values() if name == rule]
        keys = sorted({key for others in alike for key in others})
        differing = [key for key in keys if len({str(others.get(key)) for others in alike}) > 1]
        said = [_option(key, options[key]) for key in differing if key in options]
        titles[label] = ", ".join(said if one_rule and said else [rule, *said])
    if len(set(titles.values())) == len(titles):
        return titles
    return {label: _label_in_words(label, rule) for label, (rule, _) in names.items()}


def _label_in_words(label: str, rule: str) -> str:
    """Return `pfa, decay` for `pfa-decay`, where options do not say what differs."""
    rest = label.removeprefix(f"{rule}-")
    return label if rest == label else f"{rule}, {rest.replace('-', ' ')}"


def _option(key: str, value: Any) -> str:
    word = key.removeprefix("feedback_").replace("_", " ")
    return f"{word} {value:g}" if isinstance(value, int | float) else f"{word} {value}"


def name_some(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Return places and names of about `most` of a list at most, its ends among them, for an axis."""
    every = math.ceil(len(names) / most)
    places = [*range(0, len(names) - 1 - every // 2, every), len(names) - 1]
    return places, [names[place] for place in places]


def signed(value: float) -> str:
    """Return a number with its sign and two decimals; what rounds to zero is `+0.00`."""
    return f"{round(value, 2) + 0.0:+.2f}"
