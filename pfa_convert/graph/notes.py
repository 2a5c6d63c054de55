"""What is noted of a graph's nodes while it is read: what each computes, holds, and does with Parameters."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.node import map_arg

from pfa_convert.graph.uses import UNFINISHED, Applied, Used
from pfa_convert.graph.values import Value, whole


class Notes:
    """What is known so far of the nodes of one or more graphs.

    `uses` has what a node does with Parameters, `values` what it computes, `parts` what it holds in which
    place. Only what is done with the Parameters of these paths counts, where some were `handed`.
    """

    def __init__(self, handed: frozenset[str] | None) -> None:
        self.uses: dict[fx.Node, list[Applied | Used]] = {}
        self.values: dict[fx.Node, Value] = {}
        self.parts: dict[fx.Node, Any] = {}
        self.handed = handed

    def structure(self, argument: Any) -> Any:
        """Return an argument with the values of its nodes in their places."""
        return map_arg(argument, lambda node: self.parts.get(node, self.values[node]))

    def hold(self, node: fx.Node, structure: Any) -> Value:
        """Note what a node holds in which place, and return what is in any of them."""
        self.parts[node] = structure
        return whole(structure)

    def counts(self, value: Value) -> bool:
        """Say whether a value comes from a Parameter whose uses are asked for."""
        return self.handed is None or not self.handed.isdisjoint(value.paths)

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
                self.use(node, [value], UNFINISHED)
