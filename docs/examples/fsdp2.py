"""A converted model under FSDP2, on scikit-learn's digits: torchrun --nproc-per-node 2 fsdp2.py"""

import torch
from sklearn.datasets import load_digits
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from pfa_convert import alignment, convert, couple
from pfa_convert.models import build

distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
model = convert(build("paper/mlp", 10, in_features=64, hidden=[64, 64]), rule="pfa")
for layer in [module for module in model.modules() if isinstance(module, torch.nn.Linear)]:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.02)
couple(model, optimizer)

images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
for _ in range(8):
    for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
        mine = batch[rank::world]
        functional.cross_entropy(model(images[mine].float() / 16), labels[mine]).backward()
        optimizer.step()
        optimizer.zero_grad()
accuracy = (model(images.float() / 16).argmax(1) == labels).float().mean()
angles = {site: f"{value['angle_deg']:.1f} degrees" for site, value in alignment(model).items()}
if rank == 0:
    print(f"accuracy {accuracy:.3f}", angles)
distributed.destroy_process_group()
