"""timm's optimizer, schedule, clipping and averaged weights, as in its train.py, with a transformer."""

import timm
import torch
from sklearn.datasets import load_digits
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad

from pfa_convert import alignment, convert, couple

torch.manual_seed(0)
small = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 2}
plain = timm.create_model("vit_tiny_patch16_224", num_classes=10, **small)
model = convert(plain, rule="pfa", options={"start_norm": "weight"})
optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-3, weight_decay=0.05)
couple(model, optimizer, forgetting=40)  # the one line that couples; AdamW's decay is too weak to forget by
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=6, warmup_epochs=1)
average, loss_fn = ModelEmaV3(model, decay=0.98), LabelSmoothingCrossEntropy()

images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
images = images.view(-1, 1, 8, 8).float() / 8 - 1
for epoch in range(epochs):
    for batch in torch.randperm(len(images)).split(32):
        loss_fn(model(images[batch]), labels[batch]).backward()
        dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
    scheduler.step(epoch + 1)
print(f"accuracy {(average.eval()(images).argmax(1) == labels).float().mean():.3f}")
print({site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model).items()})
