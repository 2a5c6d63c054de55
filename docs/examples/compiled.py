"""torch.compile takes a converted model as one graph."""

import torch
import torchvision
from torch.nn import functional

from pfa_convert import convert, couple

torch.manual_seed(0)
model = convert(torchvision.models.resnet18(num_classes=10), rule="pfa")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
couple(model, optimizer)
model.compile(fullgraph=True, backend="inductor" if torch.cuda.is_available() else "aot_eager")

images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
for step in range(4):
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
