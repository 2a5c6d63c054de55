"""snntorch and spikingjelly: networks of spiking neurons, with surrogate gradients and state over time."""

from __future__ import annotations

from typing import Any

import torch
from catalogue import Case, entry
from torch import nn


class OverTime(nn.Module):
    """Runs a network for some steps from fresh state, and returns the mean of its output."""

    def __init__(self, network: nn.Module, reset: Any, steps: int = 4) -> None:
        super().__init__()
        self.network, self.reset, self.steps = network, reset, steps

    def forward(self, x: Any) -> Any:
        """Return the mean over time."""
        self.reset(self.network)
        return torch.stack([self.network(x) for _ in range(self.steps)]).mean(0)


def reset_hidden(network: nn.Module) -> None:
    """Start from fresh state. snntorch's own `utils.reset` knows no copies, only what was constructed."""
    for module in network.modules():
        if hasattr(module, "init_hidden"):
            (module.reset_mem if hasattr(module, "reset_mem") else module.init_slstm)()


@entry("snntorch", "leaky, hidden state")
def leaky() -> Case:
    import snntorch as snn

    net = nn.Sequential(
        nn.Linear(6, 8),
        snn.Leaky(beta=0.8, init_hidden=True, learn_beta=True),
        nn.Linear(8, 4),
        snn.Leaky(beta=0.7, init_hidden=True),
    )
    return OverTime(net, reset_hidden), (torch.rand(3, 6) * 2,), {}


class Explicit(nn.Module):
    """The form of snntorch's tutorials: state in local variables, one layer after the other."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Synaptic(alpha=0.8, beta=0.9)

    def forward(self, x: Any) -> Any:
        """Return spikes and membrane potentials over time."""
        one = self.lif1.init_leaky()
        current, two = self.lif2.init_synaptic()
        spikes, potentials = [], []
        for _ in range(4):
            spike, one = self.lif1(self.fc1(x), one)
            spike, current, two = self.lif2(self.fc2(spike), current, two)
            spikes.append(spike)
            potentials.append(two)
        return torch.stack(spikes), torch.stack(potentials)


@entry("snntorch", "synaptic, explicit state")
def explicit() -> Case:
    return Explicit(), (torch.rand(3, 6) * 3,), {}


@entry("snntorch", "recurrent leaky")
def recurrent_leaky() -> Case:
    import snntorch as snn

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Flatten(),
        snn.RLeaky(beta=0.8, linear_features=64, init_hidden=True),
        nn.Linear(64, 4),
        snn.Leaky(beta=0.7, init_hidden=True, output=False),
    )
    return OverTime(net, reset_hidden), (torch.rand(2, 1, 6, 6) * 2,), {}


@entry("snntorch", "spiking lstm")
def slstm() -> Case:
    import snntorch as snn

    net = nn.Sequential(snn.SLSTM(6, 8, init_hidden=True), nn.Linear(8, 4))
    return OverTime(net, reset_hidden), (torch.rand(3, 6) * 2,), {}


@entry("spikingjelly", "integrate and fire")
def integrate() -> Case:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(36, 8),
        neuron.LIFNode(),
        layer.Dropout(0.2),
        layer.Linear(8, 4),
    )
    return OverTime(net, functional.reset_net), (torch.rand(2, 1, 6, 6) * 3,), {}


class MultiStep(nn.Module):
    """A network in spikingjelly's multi-step mode: time is the first dimension."""

    def __init__(self, network: nn.Module) -> None:
        from spikingjelly.activation_based import functional

        super().__init__()
        self.network = network
        functional.set_step_mode(self.network, "m")

    def forward(self, x: Any) -> Any:
        """Return the mean over time."""
        from spikingjelly.activation_based import functional

        functional.reset_net(self.network)
        return self.network(x).mean(0)


@entry("spikingjelly", "multi-step")
def multi_step() -> Case:
    from spikingjelly.activation_based import layer, neuron

    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.ParametricLIFNode(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(36, 4),
    )
    return MultiStep(net), (torch.rand(4, 2, 1, 6, 6) * 3,), {}


@entry("spikingjelly", "spiking resnet")
def spiking_resnet() -> Case:
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model import spiking_resnet

    net = spiking_resnet.SpikingResNet(
        spiking_resnet.BasicBlock, [1, 1, 1, 1], num_classes=4, spiking_neuron=neuron.IFNode
    )
    return OverTime(net, functional.reset_net, 2), (torch.rand(2, 3, 32, 32) * 3,), {}
