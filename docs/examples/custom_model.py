"""A model of one's own: nothing to register, and `verify` says whether every weight is accounted for.

pfa-convert custom_model:Network --rule pfa
"""

import torch
from torch import nn
from torch.nn import functional

from pfa_convert import convert, couple, verify


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.W = nn.Linear(64, 32), nn.Parameter(torch.randn(32, 10) / 6)

    def forward(self, x):
        return torch.relu(self.first(x)) @ self.W  # a weight that no layer holds


def example_inputs():
    return (torch.randn(2, 64),)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = convert(Network(), rule="pfa", strict=True)
    assert verify(model, *example_inputs()).balanced
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=1e-3)
    couple(model, optimizer)
    images, labels = torch.randn(256, 64), torch.randint(10, (256,))
    for step in range(80):
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
