"""What is noted of a graph's nodes while it is read: what each computes, holds, and does with Parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from pfa_convert.feedback.functions import changes_in_place, is_view
from pfa_convert.graph.nodes import function_of
from pfa_convert.graph.uses import ASSEMBLED, Applied, Generated, Used
from pfa_convert.graph.values import Value, whole


class Notes:
    """What is known so far of the nodes of one or more graphs.

    `uses` has what a node does with Parameters, `values` what it computes, `parts` what it holds in which
    place; `written` has what attributes are that something was written into, `overwritten` are the
    activations, and `writes` says whether that is of account for the weights; `unfinished` are the
    Parameters on their way to a use where a graph ends too early. Only what is done with the Parameters of
    these paths counts, where some were `handed`.
    """

    def __init__(self, handed: frozenset[str] | None) -> None:
        self.uses: dict[fx.Node, list[Applied | Used | Generated]] = {}
        self.values: dict[fx.Node, Value] = {}
        self.parts: dict[fx.Node, Any] = {}
        self.written: dict[str, Value] = {}
        self.overwritten: set[fx.Node] = set()
        self.writes = False
        self.unfinished: list[str] = []
        self.handed = handed

    def structure(self, argument: Any, user: fx.Node) -> Any:
        """Return an argument of a node, with the values of others in their places."""
        return map_arg(argument, lambda node: self.parts.get(node, self.given(user, node)))

    def hold(self, node: fx.Node, structure: Any) -> Value:
        """Note what a node holds in which place, and return what is in any of them."""
        self.parts[node] = structure
        return whole(structure)

    def counts(self, value: Value) -> bool:
        """Say whether a value comes from a Parameter whose uses are asked for."""
        return self.handed is None or not self.handed.isdisjoint(value.paths)

    def given(self, node: fx.Node, entry: fx.Node) -> Value:
        """Return the value of a node that another is given; what an earlier call computed, it has left."""
        value = self.values[entry]
        earlier = entry.meta.get("call", 0) < node.meta.get("call", 0)
        return replace(value, left=True) if earlier and value.learned and entry.op != "get_attr" else value

    def use(self, node: fx.Node, learned: list[Value], use: str, inside: Any = None) -> None:
        """Note a use of all the Parameters that values come from, perhaps `inside` an untraced function."""
        ours = [value for value in learned if self.counts(value)]
        self.uses[node] += [Used(path, use, inside) for value in ours for path in sorted(value.paths)]

    def note_unfinished(self, graph: fx.Graph) -> None:
        """Note the weights that were on their way to a use where the tracing of a forward ended.

        A table that was added to an activation, as positions are, has had its use.
        """
        added = {use for uses in self.uses.values() for use in uses if use == Used(use.path, "added")}
        for node in graph.nodes:
            value = self.values[node]
            if not node.users and value.paths.isdisjoint(use.path for use in added):
                self.unfinished += sorted(value.paths) if self.counts(value) else []

    def write(self, node: fx.Node) -> None:
        """Note what a constant is that something is written into, and the one that it is a view of."""
        if not node.op.startswith("call_") or not changes_in_place(function_of(node)):
            return
        inputs = [self.values[n] for n in node.all_input_nodes]
        paths = frozenset(path for value in inputs for path in value.paths)
        activation = any(value.activation for value in inputs)
        written = node.args[0]
        while isinstance(written, fx.Node) and not self.values[written].activation:
            own = self.values[written]
            self.writes |= bool(own.paths)
            if activation:
                made = Value(own.paths, mixed=bool(own.paths), activation=True, written=True)
            else:
                made = own if paths <= own.paths else Value(own.paths | paths, written=True, like=own.like)
            if made.written and written.op == "placeholder":
                self.use(node, [Value(paths)], ASSEMBLED)
            self.values[written] = made
            if written.op == "get_attr":
                self.written[str(written.target)] = made
            written = written.args[0] if _is_view(written) else None
        while isinstance(written, fx.Node):
            self.overwritten.add(written)
            written = written.args[0] if _is_view(written) else None
        if isinstance(node.args[0], fx.Node):
            self.values[node] = self.values[node.args[0]]


def _is_view(node: Any) -> bool:
    """Say whether a node is a view of its first argument."""
    return isinstance(node, fx.Node) and node.op.startswith("call_") and is_view(function_of(node))
