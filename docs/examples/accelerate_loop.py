"""A converted model with Hugging Face accelerate: couple before prepare."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from pfa_convert import convert, couple
from pfa_convert.models import build

torch.manual_seed(0)
images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
loader = DataLoader(TensorDataset(images.float() / 16, labels), batch_size=32, shuffle=True)
model = convert(build("paper/mlp", 10, in_features=64, hidden=[64, 64]), rule="pfa-o")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
couple(model, optimizer)

accelerator = Accelerator(cpu=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for epoch in range(5):
    for inputs, targets in loader:
        loss = functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
