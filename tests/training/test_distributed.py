"""Two processes do what one does."""

import json

import pytest
import torch
from runs import run_in_two_processes
from safetensors.torch import load_file

from pfa_convert import load_recipe, train

pytestmark = pytest.mark.xdist_group("two processes")

SCRIPT = """
import json, sys, torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pfa_convert import convert, couple, load_recipe, train
from pfa_convert.models import build

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
for name, settings in json.loads(sys.argv[2]).items():
    recipe = load_recipe("digits-mlp-pfa", settings)
    result = train(recipe, output=f"{sys.argv[1]}/{name}", device="cpu")
    assert result.epochs == recipe.train.epochs

torch.set_default_dtype(torch.float32)
sent = {}
for name, rule, coupled in [("bp", "bp", False), ("collapsed", "pfa", True), ("fused", "pfa", False)]:
    options = {"expansion": 3, "strategy": name} if rule == "pfa" else {}
    model = convert(build("paper/resnet20", 10), rule, options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if coupled:
        couple(model, optimizer)
    parallel = DistributedDataParallel(model)
    total = [0]
    def count(state, bucket):
        total[0] += bucket.buffer().nbytes
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])
    parallel.register_comm_hook(None, count)
    parallel(torch.randn(2, 3, 32, 32)).sum().backward()
    sent[name] = total[0]
if dist.get_rank() == 0:
    open(f"{sys.argv[1]}/sent.json", "w").write(json.dumps(sent))
"""


MLP = ["train.epochs=2", "model.hidden=[32, 32]", "data.validation=101"]
SETTINGS = {
    "fused": [*MLP, "convert.options={expansion: 3, strategy: fused}"],
    "collapsed, accumulation, an odd batch, clipping": [
        *MLP,
        "train.gradient_accumulation=3",
        "data.batch_size=31",
        "train.clip_norm=0.5",
    ],
    "transformer, AdamW": [
        "train.epochs=2",
        "data={dataset: synthetic, options: {images: 96}, batch_size: 16, validation: 16}",
        "model={name: timm/vit_tiny_patch16_224, img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, "
        "num_heads: 2}",
        "train.optimizer={name: adamw, lr: 0.001, weight_decay: 0.05}",
        "train.forgetting=40",
        "convert.options={start_norm: weight, block_size: 8}",
    ],
}
# Adam divides by the root of a gradient's square, however small that is.
PRECISION = {"transformer, AdamW": 1e-6}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The folder with what two processes have made, one run after the other, and the bytes that they sent."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    run_in_two_processes(script, folder, json.dumps(SETTINGS))
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one(tmp_path, by_two, name):
    precision = PRECISION.get(name, 1e-10)
    torch.set_default_dtype(torch.float64)
    try:
        train(load_recipe("digits-mlp-pfa", SETTINGS[name]), output=tmp_path / "one", device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    folders = (tmp_path / "one", by_two / name)
    one, two = (load_file(folder / "last.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for key in one:
        if one[key].is_floating_point():
            # Sums in another order, over 84 steps of which each builds on the last.
            difference = (one[key] - two[key]).norm() / one[key].norm().clamp_min(1e-9)
            assert difference < precision, key
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]]
        for folder in folders
    ]
    for ours, theirs in zip(*logs, strict=True):
        for key in ("train_top1", "validation_top1", "validation_top5"):
            assert ours[key] == theirs[key]
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=precision)


def test_collapsed_sends_no_more_bytes_than_backpropagation(by_two):
    sent = json.loads((by_two / "sent.json").read_text())
    weights = 269_722  # ResNet-20 with parameter-free shortcuts
    assert sent["bp"] == sent["collapsed"] == 4 * weights < sent["fused"]
