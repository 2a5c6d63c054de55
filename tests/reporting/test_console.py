"""What the terminal shows of numbers."""

import math

import pytest

from pfa_convert.reporting.console import _or_dash


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-0.004, "{:.2f}", "0.00"),
        (-0.006, "{:.2f}", "-0.01"),
        (math.nan, "{:.2f}", "-"),
        (-0.0, "{:.1f}°", "0.0°"),
    ],
)
def test_no_negative_zero_in_a_table(value, form, text):
    assert _or_dash(value, form) == text
