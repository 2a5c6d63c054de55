"""A converted model under FSDP2: torchrun --nproc-per-node 2 fsdp2.py"""

import torch
import torchvision
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from pfa_convert import convert

distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
torch.manual_seed(0)
model = convert(torchvision.models.resnet18(num_classes=10), rule="pfa", options={"expansion": 2})
for block in (model.layer1, model.layer2, model.layer3, model.layer4):
    fully_shard(block)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
for step in range(4):
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if distributed.get_rank() == 0:
        print(f"step {step}: loss {loss.item():.3f}")
distributed.destroy_process_group()
