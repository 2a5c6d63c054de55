"""Fine-tuning: load a plain checkpoint into a converted model, train, and save a plain one again."""

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pfa_convert import convert, couple, strip_feedback

torch.manual_seed(0)
save_file(
    torchvision.models.resnet18().state_dict(), "pretrained.safetensors"
)  # stands for a downloaded file

model = convert(torchvision.models.resnet18(), rule="pfa-o")
model.load_state_dict(load_file("pretrained.safetensors"))  # strictly: the names are the plain model's
model.fc = torch.nn.Linear(512, 10)  # a new head, trained by backpropagation like any new layer
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
couple(model, optimizer)

images, labels = torch.randn(16, 3, 64, 64), torch.randint(10, (16,))
for step in range(4):
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
save_file(strip_feedback(model), "finetuned.safetensors")
