"""Fine-tuning: load a plain checkpoint into a converted model, train, and save a plain one again."""

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from pfa_convert import alignment, convert, couple, strip_feedback
from pfa_convert.models import build

torch.manual_seed(0)
images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16


def fit(model, optimizer, chosen, epochs=8):
    for epoch in range(epochs):
        for batch in chosen[torch.randperm(len(chosen))].split(32):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")


plain = build("paper/mlp", 10, in_features=64, hidden=[64, 64])
fit(plain, torch.optim.SGD(plain.parameters(), lr=0.1), (labels < 5).nonzero().flatten(), epochs=2)
save_file(plain.state_dict(), "pretrained.safetensors")

plain = build("paper/mlp", 10, in_features=64, hidden=[64, 64])
model = convert(plain, rule="pfa", options={"aligned": True})
model.load_state_dict(load_file("pretrained.safetensors"))  # strictly: the names are the plain model's
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
couple(model, optimizer)
fit(model, optimizer, torch.arange(len(labels)))
save_file(strip_feedback(model), "finetuned.safetensors")
print(f"accuracy {(model(images).argmax(1) == labels).float().mean():.3f}")
print({site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model).items()})
