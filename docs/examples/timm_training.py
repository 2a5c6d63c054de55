"""timm's own optimizer, schedule, clipping and averaged weights with a converted model."""

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad

from pfa_convert import convert, couple

torch.manual_seed(0)
model = convert(
    timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10), rule="pfa"
)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
couple(model, optimizer)
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=1)
average = ModelEmaV3(model, decay=0.9)
loss_fn = LabelSmoothingCrossEntropy()

images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
for epoch in range(epochs):
    loss = loss_fn(model(images), labels)
    loss.backward()
    dispatch_clip_grad(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    average.update(model)
    scheduler.step(epoch + 1)
    print(f"epoch {epoch}: loss {loss.item():.3f}")
