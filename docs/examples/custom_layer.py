"""A layer of one's own: a function says how it applies its weight, a check compares it with formulas."""

import torch
from torch import nn
from torch.nn import functional

from pfa_convert import LAYERS, convert, couple
from pfa_convert.feedback.functional import linear
from pfa_convert.testing import check_layer


class Scaled(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return functional.linear(x, self.kernel) / 10


@LAYERS.register(Scaled, weights=["kernel"])
def scaled(layer, kernel, x):
    return linear(x, kernel.value, feedback=kernel.feedback) / 10


torch.manual_seed(0)
check_layer(Scaled(7, 5), torch.randn(4, 7))
model = convert(nn.Sequential(Scaled(64, 32), nn.ReLU(), Scaled(32, 10)), rule="pfa")
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-3)
couple(model, optimizer)
images, labels = torch.randn(256, 64), torch.randint(10, (256,))
for step in range(100):
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
