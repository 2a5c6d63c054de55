"""A converted model in Lightning with AdamW: convert in the constructor, couple beside the optimizer."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from pfa_convert import alignment, convert, couple
from pfa_convert.models import build


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = convert(build("paper/mlp", 10, in_features=64, hidden=[64, 64]), rule="pfa")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)
        couple(self.model, optimizer, forgetting=50)  # AdamW's decay is too weak to forget by
        return optimizer

    def training_step(self, batch, index):
        return functional.cross_entropy(self.model(batch[0]), batch[1])


lightning.seed_everything(0)
images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
data, model = TensorDataset(images.float() / 16, labels), Digits()
options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
lightning.Trainer(max_epochs=5, **options).fit(model, DataLoader(data, batch_size=32, shuffle=True))
print(f"accuracy {(model.model(data[:][0]).argmax(1) == data[:][1]).float().mean():.3f}")
print({site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model.model).items()})
