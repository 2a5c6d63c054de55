"""What a forward does with a weight: it applies it, or something else, in a report's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from pfa_convert.feedback.functions import plain_name
from pfa_convert.feedback.layout import WeightLayout


@dataclass(frozen=True)
class Applied:
    """A product applies the Parameter of this path, as it is or computed; `kind` names the function."""

    path: str
    kind: str
    layout: WeightLayout


@dataclass(frozen=True)
class Used:
    """Something else is done with the Parameter, as `use` says; perhaps `inside` an untraced function."""

    path: str
    use: str
    inside: Any = None

    @property
    def applies(self) -> bool:
        """Whether that is a linear map, of a kind that has no feedback."""
        return self.use in UNSUPPORTED


@dataclass(frozen=True)
class Generated:
    """A product applies, as its weight, what the layer of this path makes of Parameters or constants."""

    path: str
    kind: str

    @property
    def reason(self) -> str:
        """Why that has no feedback."""
        return f"{self.kind} applies, as its weight, what this layer makes of Parameters or constants alone"


def use_name(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> str:
    """Return what a function that is not among our products does with a weight that it is given.

    A key of `UNSUPPORTED` says that it applies the weight all the same.
    """
    if function is functional.scaled_dot_product_attention:
        attended = [*args[:3], *(kwargs.get(name) for name in ("query", "key", "value"))]
        if not any(operand is weight for operand in attended):
            return "added"
    called = str(getattr(function, "__name__", "used"))
    if called in FUSED:
        return called if _is_recurrent_weight(args, kwargs, weight) else "learned input"
    if called in UNSUPPORTED:
        return called
    name = plain_name(function) or called.strip("_")
    return _USES.get(name, name)


def _is_recurrent_weight(args: Sequence[Any], kwargs: Mapping[str, Any], operand: Any) -> bool:
    """Say whether a recurrent function applies an operand, which otherwise is its input or its state.

    A cell is given `(input, state, *weights)`, a layer `(input, [batch_sizes,] state, [*weights], ...)`.
    """
    lists = [entry for entry in args[2:4] if isinstance(entry, list | tuple)]
    weights = lists[-1] if lists else [*args[2:], kwargs.get("w_ih"), kwargs.get("w_hh")]
    return any(entry is operand for entry in weights)


FUSED = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "nn.{} with convert(model, unroll=True)"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), "nn.{}Cell"),
}
"""PyTorch's operations that apply recurrent weights inside themselves, with what has feedback instead."""


def _reason_of_recurrent(name: str) -> str:
    kind = name.partition("_")[0].upper()
    return f"torch.{name} applies it inside one operation; {FUSED[name].format(kind)} has feedback"


_OTHER_PRODUCTS = (
    "vecdot",
    "linalg_vecdot",
    "vdot",
    "addr",
    "sparse_addmm",
    "sspaddmm",
    "_int_mm",
    "_scaled_mm",
    "scaled_mm",
    "_scaled_grouped_mm",
    "scaled_grouped_mm",
    "linear_cross_entropy",
    "linalg_solve",
    "linalg_solve_ex",
    "linalg_solve_triangular",
    "linalg_tensorsolve",
    "linalg_lu_solve",
    "linalg_lstsq",
    "cholesky_solve",
    "lu_solve",
    "ormqr",
)
"""Functions that are linear in a weight, or in its inverse, and that have no feedback."""

SCALE_OF_A_WEIGHT = "scale of a weight"
ASSEMBLED = "written into another tensor in place"
OF_ANOTHER_SHAPE = "computes a weight of another shape"
LEFT = "left in an attribute"
TERMS_WRITTEN = "terms that are written to before they are summed"
UNSUPPORTED = {
    **{name: _reason_of_recurrent(name) for name in FUSED},
    "addmm_": "addmm_ applies it in place",
    "addmv_": "addmv_ applies it in place",
    "addbmm_": "addbmm_ applies it in place",
    "baddbmm_": "baddbmm_ applies it in place",
    **{name: f"{name.lstrip('_')} applies it" for name in _OTHER_PRODUCTS},
    "cosine_similarity": "cosine_similarity compares with it",
    "cdist": "cdist compares with it",
    "pairwise_distance": "pairwise_distance compares with it",
    ASSEMBLED: "it is written into another tensor in place: put that together with torch.cat, stack or pad",
    LEFT: "a call leaves what it computes of it in an attribute for the next: compute it in each call",
    TERMS_WRITTEN: "what it is multiplied with is written to before it is summed: mask the factors",
    OF_ANOTHER_SHAPE: "it computes a weight of another shape, as do others",
    "learned input of attention": "attention has it among its queries, keys or values",
}
"""What applies a weight without feedback, as a reason."""

_NAMES = {
    "added": ("add", "radd", "iadd", "sub", "rsub"),
    "scale": ("mul", "rmul", "imul", "div", "truediv"),
    "table that is looked up": ("embedding", "getitem", "index_select"),
    "learned input": ("cat", "stack"),
    "norm": ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"),
    "slope": ("prelu",),
    "learned input of attention": ("scaled_dot_product_attention",),
}
_USES = {name: use for use, names in _NAMES.items() for name in names}
