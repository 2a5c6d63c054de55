"""An ordinary training loop with a converted model, on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pfa_convert import alignment, convert, couple

torch.manual_seed(0)
plain = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(512, 10)),
)
model = convert(plain, rule="pfa")
# A strong weight decay at first is what aligns: R forgets its start, and F = B R comes to B B^T W.
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.02)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.2)
couple(model, optimizer)  # exact, and as fast as backpropagation
images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16

for epoch in range(10):
    for batch in torch.randperm(len(images)).split(32):
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    schedule.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
print(f"accuracy {(model(images).argmax(1) == labels).float().mean():.3f}")
print({site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model).items()})
