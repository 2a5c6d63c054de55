"""torch.compile takes a converted model as one graph; here on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from pfa_convert import alignment, convert, couple
from pfa_convert.models import build

torch.manual_seed(0)
model = convert(build("paper/mlp", 10, in_features=64, hidden=[64, 64]), rule="pfa")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.02)
couple(model, optimizer)
model.compile(fullgraph=True, backend="inductor" if torch.cuda.is_available() else "aot_eager")

images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
for epoch in range(8):
    for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
print(f"accuracy {(model(images).argmax(1) == labels).float().mean():.3f}")
print({site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model).items()})
