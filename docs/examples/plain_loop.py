"""An ordinary training loop with a converted model."""

import torch
import torchvision
from torch.nn import functional

from pfa_convert import alignment, convert, couple

torch.manual_seed(0)
model = convert(torchvision.models.resnet18(num_classes=10), rule="pfa")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
couple(model, optimizer)  # exact, and as fast as backpropagation

images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
for step in range(10):
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
print({site: f"{value['angle_deg']:.0f} degrees" for site, value in alignment(model).items()})
