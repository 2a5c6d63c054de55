"""Two processes do what one does."""

import ast
import json

import pytest
import torch
from runs import run_in_two_processes
from safetensors.torch import load_file

from pfa_convert import load_recipe, train

SCRIPT = """
import sys, torch
from torch import distributed as dist
from pfa_convert import load_recipe, train

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
recipe = load_recipe(sys.argv[1], sys.argv[3:])
result = train(recipe, output=sys.argv[2], device="cpu")
assert result.epochs == recipe.train.epochs and not dist.is_initialized()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


MLP = ["model.hidden=[32, 32]", "data.validation=101"]
VIT = [
    "data={dataset: synthetic, options: {images: 96}, batch_size: 16, validation: 16}",
    "model={name: timm/vit_tiny_patch16_224, img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, "
    "num_heads: 2}",
    "train.optimizer={name: adamw, lr: 0.001, weight_decay: 0.05}",
    "train.forgetting=40",
]


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ([*MLP, "convert.options={expansion: 3, strategy: fused}"], 1e-10),
        ([*MLP, "train.gradient_accumulation=3", "data.batch_size=31", "train.clip_norm=0.5"], 1e-10),
        # Adam divides by the root of a gradient's square, however small that is.
        ([*VIT, "convert.options={start_norm: weight, block_size: 8}"], 1e-6),
    ],
    ids=["fused", "collapsed, accumulation, an odd batch, clipping", "transformer, AdamW"],
)
def test_two_processes_equal_one(tmp_path, script, settings, precision):
    settings = ["train.epochs=2", *settings]
    run_in_two_processes(script, "digits-mlp-pfa", tmp_path / "two", *settings)
    torch.set_default_dtype(torch.float64)
    try:
        train(load_recipe("digits-mlp-pfa", settings), output=tmp_path / "one", device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if one[name].is_floating_point():
            # Sums in another order, over 84 steps of which each builds on the last.
            difference = (one[name] - two[name]).norm() / one[name].norm().clamp_min(1e-9)
            assert difference < precision, name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()[1:]]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*logs, strict=True):
        for key in ("train_top1", "validation_top1", "validation_top5"):
            assert ours[key] == theirs[key]
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=precision)


BYTES = """
import sys, torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pfa_convert import convert, couple
from pfa_convert.models import build

dist.init_process_group("gloo")
sent = {}
for name, rule, coupled in [("bp", "bp", False), ("collapsed", "pfa", True), ("fused", "pfa", False)]:
    options = {"expansion": 3, "strategy": name} if rule == "pfa" else {}
    model = convert(build("paper/resnet20", 10), rule, options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if coupled:
        couple(model, optimizer)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    total = [0]
    def count(state, bucket):
        total[0] += bucket.buffer().nbytes
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])
    parallel.register_comm_hook(None, count)
    parallel(torch.randn(2, 3, 32, 32)).sum().backward()
    sent[name] = total[0]
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(str(sent))
dist.destroy_process_group()
"""


def test_collapsed_sends_no_more_bytes_than_backpropagation(tmp_path):
    script = tmp_path / "bytes.py"
    script.write_text(BYTES)
    run_in_two_processes(script, tmp_path / "sent")
    sent = ast.literal_eval((tmp_path / "sent").read_text())
    weights = 269_722  # ResNet-20 with parameter-free shortcuts
    assert sent["bp"] == sent["collapsed"] == 4 * weights < sent["fused"]
