"""What PyTorch's functions, called in a graph, do with learned weights, and what they compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from pfa_convert.feedback.calls import at
from pfa_convert.feedback.functions import (
    axes_after,
    is_elementwise,
    is_lookup,
    keeps_mixtures,
    makes_new_values,
    plain_name,
    those_that_count,
)
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.lookup import looked_up_in, takes_matrices
from pfa_convert.feedback.products import Product, is_scale
from pfa_convert.feedback.written_out import dims_of, is_multiplication, is_sum, may_sum_over, written_out
from pfa_convert.graph.computed import layout_of_factor, product_of_weights, result_like
from pfa_convert.graph.nodes import attribute, function_of
from pfa_convert.graph.notes import Notes
from pfa_convert.graph.trace import is_plain_function
from pfa_convert.graph.uses import (
    ASSEMBLED,
    LEFT,
    SCALE_OF_A_WEIGHT,
    TERMS_WRITTEN,
    Applied,
    Generated,
    use_name,
)
from pfa_convert.graph.values import ACTIVATION, CONSTANT, Value, layers_of


class Results(Notes):
    """Notes of the calls of PyTorch's functions in a forward of the owner's, or of a child inside it."""

    def __init__(
        self, owner: nn.Module, handed: frozenset[str] | None, without_gradients: bool = False
    ) -> None:
        super().__init__(handed)
        self._owner = owner
        self._without_gradients = without_gradients
        self._multiplied: dict[fx.Node, list[Value]] = {}

    def _weights(self, function: Any, node: fx.Node, values: list[Value], note: bool) -> list[Value]:
        """Return those values, of all that make up a weight, which are weights; the others scale it."""
        sizes = []
        for value in values:
            parameters = [attribute(self._owner, path) for path in value.paths]
            sizes.append((max(p.dim() for p in parameters), max(p.numel() for p in parameters)))
        kept = those_that_count(function, sizes)
        scales = [value for index, value in enumerate(values) if index not in kept and value.learned]
        self.use(node, scales if note else [], SCALE_OF_A_WEIGHT)
        return [values[index] for index in kept]

    def of_product(self, product: Product, node: fx.Node) -> Value:
        """Note which weights a product applies, and return what it computes."""
        weights: list[tuple[int, Value]] = []
        others: list[Value] = []
        generated = CONSTANT
        for index, slot in enumerate(product.slots(node.args, node.kwargs)):
            operand = at(slot, node.args, node.kwargs)
            value = self.given(node, operand) if isinstance(operand, fx.Node) else CONSTANT
            if value.learned or (value.mixed and index == product.weight):
                weights.append((index, value))
            else:
                others.append(value)
                generated = value if value.layers and index == product.weight else generated
        paths = frozenset(path for _, value in weights for path in value.paths)
        if not any(value.activation for value in others):
            like = result_like(function_of(node), node, self.values)
            made = product_of_weights(product, node, [value for _, value in weights], like)
            return replace(made, left=bool(weights) and all(value.left for _, value in weights))
        if node.meta.get("without_gradients") or self._without_gradients:
            self.use(node, [value for _, value in weights], "applied without gradients")
            return ACTIVATION
        self.writes |= any(value.written for value in others) and bool(weights)
        if not layers_of(others):
            self.uses[node] += [Generated(layer, f"{product.name}()") for layer in sorted(generated.layers)]
        for index, value in ((index, value) for index, value in weights if self.counts(value)):
            if value.written or value.left:
                self.use(node, [value], LEFT if value.left else ASSEMBLED)
                continue
            if is_scale(product, index, node.args):
                self.use(node, [value], "scale")
                continue
            for path in sorted(value.paths):
                shape = tuple(attribute(self._owner, path).shape)
                layout = layout_of_factor(product, index, path, value, shape, node.args, node.kwargs)
                self.uses[node].append(Applied(path, f"{product.name}()", layout))
        return Value(paths, mixed=bool(paths), activation=True, layers=layers_of(others))

    def _written_out(self, function: Any, node: fx.Node) -> Value | None:
        """Return the product whose terms a node sums, multiplied before; None if it does no such thing."""
        terms = node.args[0] if node.args and is_sum(function) else None
        if not isinstance(terms, fx.Node):
            return None
        dims, multiplied = dims_of(node.args, node.kwargs), self._multiplied.get(terms, [])
        if not any(may_sum_over(None if v.like is None else v.like.shape, dims) for v in multiplied):
            return None
        if terms in self.overwritten:
            self.writes = True
            self.use(node, multiplied, TERMS_WRITTEN)
            return None
        return self.of_product(written_out(dims), terms)

    def of_attention(self, node: fx.Node) -> Value:
        """Note what `multi_head_attention_forward` does with the Parameters that it is given."""
        for argument in (*node.args, *node.kwargs.values()):
            value = self.values.get(argument, CONSTANT) if isinstance(argument, fx.Node) else CONSTANT
            for path in sorted(value.paths) if value.learned and self.counts(value) else ():
                shape = tuple(attribute(self._owner, path).shape)
                if len(shape) == 2:
                    applied = Applied(path, "multi_head_attention_forward()", WeightLayout(shape))
                    self.uses[node].append(applied)
                elif len(shape) > 2:
                    self.use(node, [value], "bias of attention")
        return ACTIVATION

    def of_function(self, function: Any, node: fx.Node, learned: list[Value], inputs: list[Value]) -> Value:
        """Return what a function that is no product computes."""
        name = plain_name(function)
        if name in _NO_TENSORS or makes_new_values(function):
            return CONSTANT
        product = self._written_out(function, node)
        if product is not None:
            return product
        activation = any(value.activation for value in inputs)
        applied = bool(learned) and activation
        if applied and is_multiplication(function) and len(node.args) == 2:
            self._multiplied[node] = learned
        weights = self._weights(function, node, [value for value in inputs if value.paths], not applied)
        paths = frozenset(path for value in weights for path in value.paths)
        if applied:
            for entry in node.all_input_nodes:
                if self.values[entry].learned:
                    use = use_name(function, node.args, node.kwargs, entry)
                    self.use(node, [self.values[entry]], use)
            stack = self.values.get(looked_up_in(node.args, node.kwargs), CONSTANT)
            others, named = node.args[1:], dict(node.kwargs)
            if stack.learned and stack.dimensions and takes_matrices(name, others, named, stack.dimensions):
                return replace(stack, axes=axes_after(name, others, named, stack.axes), like=None)
            if not is_lookup(function) and not is_elementwise(function):
                return ACTIVATION
            return Value(paths, mixed=True, activation=True)
        if learned:
            traced = not is_plain_function(function)
            known = traced and (len(learned) == 1 or is_elementwise(function) or name == "stack")
            like = result_like(function, node, self.values)
            axes = weights[0].axes
            if name != "getitem" or node.all_input_nodes[0].op == "get_attr" or like is not None:
                size = None if like is None else like.dim()
                axes = axes_after(name, node.args[1:], dict(node.kwargs), axes, size) if known else None
            # Else it is perhaps one of several, as of `W.chunk(3)`.
            factors = weights[0].factors if len(weights) == 1 else ()
            written, left = any(value.written for value in learned), all(value.left for value in learned)
            return Value(paths, axes, written=written, left=left, factors=factors, like=like)
        if paths and keeps_mixtures(function):
            return Value(paths, mixed=True, activation=True)
        if not activation:
            return CONSTANT
        written = all(value.written for value in inputs if value.activation)
        return Value(activation=True, written=written, layers=layers_of(inputs))


_NO_TENSORS = frozenset(["shape", "size", "dim", "ndim", "device", "dtype", "numel", "len", "requires_grad"])
