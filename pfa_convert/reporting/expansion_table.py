"""The table of the draws by expansion."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rich.table import Table

from pfa_convert.expansion import Draws, marchenko_pastur_edges


def expansion_table(found: Sequence[Draws]) -> Table:
    """Return a row for each expansion: angles and extreme eigenvalues as drawn, and as expected."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("expansion", "path angle, degrees", "expected", "eigenvalues", "expected"):
        table.add_column(heading, justify="right")
    for draws in found:
        spread = stdev(draws.angles_deg) if len(draws.angles_deg) > 1 else 0.0
        lowest, highest = marchenko_pastur_edges(draws.expansion)
        if draws.expansion < 1:
            lowest = 0.0
        table.add_row(
            f"{draws.expansion:g}",
            f"{fmean(draws.angles_deg):.2f} ± {spread:.2f}",
            f"{draws.expected_deg:.2f}",
            f"{abs(draws.eigenvalues[0]):.3f} to {draws.eigenvalues[-1]:.3f}",
            f"{lowest:.3f} to {highest:.3f}",
        )
    return table
