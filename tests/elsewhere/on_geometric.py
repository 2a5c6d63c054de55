"""PyTorch Geometric: convolutions on a small graph, alone and stacked."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, add
from torch import nn

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 4], [1, 2, 3, 4, 0, 2, 0, 1]])


class TwoConvolutions(nn.Module):
    """Two graph convolutions with a rectifier between them."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Any, *edges: Any) -> Any:
        """Return the features of each node."""
        return self.second(self.first(x, *edges).relu(), *edges)


def two(name: str, kind: str, *more: Any, **settings: Any) -> None:
    """Put two convolutions of a kind into the catalogue."""

    def factory() -> Case:
        from torch_geometric import nn as gnn

        make = getattr(gnn, kind)
        net = TwoConvolutions(make(6, 8, **settings), make(8, 8, **settings))
        return net, (torch.randn(5, 6), EDGES, *more), {}

    add("torch_geometric", name, factory)


def network(name: str, kind: str, **settings: Any) -> None:
    """Put one of the library's whole networks into the catalogue."""

    def factory() -> Case:
        from torch_geometric.nn import models

        return getattr(models, kind)(6, 8, 2, 3, dropout=0.2, **settings), (torch.randn(5, 6), EDGES), {}

    add("torch_geometric", name, factory)


def _mlp_case(kind: str) -> Any:
    def factory() -> Case:
        from torch_geometric import nn as gnn

        def layer(n: int) -> nn.Module:
            double = 2 if kind == "EdgeConv" else 1
            return getattr(gnn, kind)(nn.Sequential(nn.Linear(double * n, 8), nn.ReLU(), nn.Linear(8, 8)))

        return TwoConvolutions(layer(6), layer(8)), (torch.randn(5, 6), EDGES), {}

    return factory


two("gcn", "GCNConv")
two("gat", "GATConv")
two("gatv2", "GATv2Conv")
two("sage", "SAGEConv")
two("graph", "GraphConv")
two("chebyshev", "ChebConv", K=3)
two("transformer", "TransformerConv")
two("tag", "TAGConv")
two("arma", "ARMAConv", num_stacks=2, num_layers=2)
two("sg", "SGConv", K=2)
two("rgcn", "RGCNConv", torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), num_relations=2, num_bases=2)
two("film", "FiLMConv")
two("general", "GeneralConv", attention=True, heads=2)
two("residual gated", "ResGatedGraphConv")
two("feast", "FeaStConv", heads=2)
network("gin network", "GIN")
network("gcn network, jumping knowledge", "GCN", jk="lstm")
network("pna network", "PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 2, 3]))
add("torch_geometric", "gin", _mlp_case("GINConv"))
add("torch_geometric", "edge", _mlp_case("EdgeConv"))
