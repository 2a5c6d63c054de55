"""What PyTorch's operations do with their operands; they are told by name, without the last underscore."""

from __future__ import annotations

from typing import Any

import torch

PRODUCTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["mm", "bmm", "_int_mm", "_grouped_mm"], ("self", "mat2")),
    **dict.fromkeys(["addmm", "_addmm_activation", "_sparse_addmm", "sspaddmm"], ("mat1", "mat2")),
    **dict.fromkeys(["baddbmm", "addbmm"], ("batch1", "batch2")),
    "matmul": ("self", "other"),
    "_scaled_mm": ("self", "mat2"),
    "_scaled_grouped_mm": ("self", "mat2"),
    "_sparse_mm": ("sparse", "dense"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "addr": ("vec1", "vec2"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "linear": ("input", "weight"),
    "mkldnn_linear": ("self", "weight"),
    **dict.fromkeys(["_linalg_solve_ex", "linalg_solve"], ("A", "B")),
    "linalg_solve_triangular": ("self", "B"),
    "linalg_lu_solve": ("LU", "B"),
    "cholesky_solve": ("self", "input2"),
    "linalg_lstsq": ("self", "b"),
    "ormqr": ("self", "input3"),
    "linalg_cross": ("self", "other"),
    "_trilinear": ("i1", "i2", "i3"),
    "bilinear": ("input1", "input2", "weight"),
    "deform_conv2d": ("input", "weight"),
    "lstm": ("input", "hx", "params"),
    "gru": ("input", "hx", "params"),
    "rnn_tanh": ("input", "hx", "params"),
    "rnn_relu": ("input", "hx", "params"),
    "_cudnn_rnn": ("input", "hx", "weight"),
    "miopen_rnn": ("input", "hx", "weight"),
    "mkldnn_rnn_layer": ("input", "hx_", "weight0", "weight1"),
}
"""The multilinear operations and the names of the operands that they multiply.

Convolutions and attention are added by `product_operands`, since there are many of them.
"""

RANDOM = torch.Tag.nondeterministic_seeded

METADATA_ONLY = frozenset(
    f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")
) | frozenset(f"new_{kind}" for kind in ("empty", "zeros", "ones", "full", "empty_strided"))
"""These read the shape of a tensor, not its values."""

MULTIPLICATIONS = frozenset(["mul", "div", "multiply", "divide"])

KEEPS_MIXTURES = MULTIPLICATIONS | frozenset(
    [
        "add",
        "sub",
        "rsub",
        "neg",
        "clone",
        "_to_copy",
        "copy",
        "where",
        "masked_fill",
        "native_dropout",
        "cat",
        "stack",
        "repeat",
        "_unsafe_view",
        "view",
        "reshape",
        "_reshape_copy",
        "select_scatter",
        "slice_scatter",
        "contiguous",
        "lerp",
        "fill",
        "addcmul",
        "constant_pad_nd",
        "roll",
        "flip",
    ]
)
"""What these make of a weight that activations have scaled is still one."""

BEGINS_MIXTURES = MULTIPLICATIONS | frozenset(
    ["add", "sub", "rsub", "where", "masked_fill", "lerp", "addcmul", "clone", "_to_copy"]
)
"""These combine a weight with activations element by element."""

_USES = {
    "embedding": ["embedding", "embedding_bag", "_embedding_bag", "embedding_renorm"],
    "looked up": ["index", "index_select", "gather", "take", "grid_sampler_2d", "grid_sampler_3d"],
    "scale": ["mul", "div", "pow", "_thnn_fused_lstm_cell"],
    "added": ["add", "sub", "rsub", "addcmul", "_thnn_fused_gru_cell"],
    "learned token": ["cat", "stack", "where", "copy", "index_put", "select_scatter", "slice_scatter"],
    "slope": ["_prelu_kernel", "prelu", "rrelu_with_noise"],
    "distance": ["_cdist_forward", "cdist", "_euclidean_dist"],
}
_USE_OF = {name: use for use, names in _USES.items() for name in names}


def name_of(operation: Any) -> str:
    """Return an operation's name without namespace, overload and the underscore of one in place."""
    name = str(operation.name()).rpartition("::")[2].partition(".")[0]
    return name if name.startswith("__") else name.removesuffix("_")


def is_known(operation: Any) -> bool:
    """Say whether it is PyTorch's or torchvision's own: what any other does with its operands is unknown."""
    return isinstance(operation, torch._ops.OpOverload) and operation.namespace in (
        "aten",
        "prim",
        "prims",
        "torchvision",
        "inductor",
    )


def product_operands(name: str, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the operands that an operation multiplies; none if it is no product."""
    if name in PRODUCTS:
        return PRODUCTS[name]
    if "conv" in name and "weight" in arguments and "backward" not in name:
        return ("input" if "input" in arguments else "self", "weight")
    if "scaled_dot_product" in name or "attention_forward" in name:
        return ("query", "key", "value")
    if name in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"):
        return tuple(key for key in arguments if "bias" not in key and "norm" not in key)
    return ()


def use_of(name: str) -> str:
    """Return in a word what an operation that is no product uses a Parameter for."""
    return "norm" if "norm" in name else _USE_OF.get(name, name.strip("_"))
