"""The kit that checks a new kind of layer, or a new rule, against explicit computations in float64.

    from pfa_convert.testing import check_layer, check_rule

    check_layer(MyLinear(7, 5), torch.randn(4, 7))
    check_rule("my-rule", {"strength": 0.5}, formula=lambda W, state: 0.5 * W)

Both raise an AssertionError that says what does not hold.
"""

from pfa_convert.testing.cases import Case, cases, problem
from pfa_convert.testing.layers import check_layer
from pfa_convert.testing.literal import EXACT, gradients, literal, relative_error, through
from pfa_convert.testing.rules import check_rule

__all__ = [
    "EXACT",
    "Case",
    "cases",
    "check_layer",
    "check_rule",
    "gradients",
    "literal",
    "problem",
    "relative_error",
    "through",
]
