"""The training step as a CUDA graph: what a CPU can show of it; on a GPU, that the weights are the same."""

from pathlib import Path

import pytest
import torch
from runs import same_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from pfa_convert import UserError, convert, couple, load_recipe, train
from pfa_convert.feedback.coupling import CHECK_INTERVAL
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.rules import RULES
from pfa_convert.training.batch import batches, train_batch
from pfa_convert.training.captured import CapturedStep
from pfa_convert.training.distributed import join
from pfa_convert.training.session import Session
from pfa_convert.training.setup import make_data

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")

SMALL = [
    "model={name: paper/resnet20, width: 4}",
    "data={dataset: synthetic, options: {images: 650}, batch_size: 16, validation: 0}",
    "train.epochs=3",
    "train.optimizer={name: sgd, lr: 0.02, momentum: 0.9, weight_decay: 0.005}",
    "train.lr_schedule={milestones: [2], gamma: 0.1}",
]
ADAMW = "train.optimizer={name: adamw, lr: 0.001, weight_decay: 0.05, capturable: true}"


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def small(rule, *settings):
    return load_recipe("cifar10-resnet20-bp", [f"convert={{rule: {rule}}}", *SMALL, *settings])


def session_of(recipe, processes):
    return Session(recipe, 0, make_data(recipe.data, Path(), processes.device), processes)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("wm", "ia", "sa")])
def test_a_step_never_waits_for_the_device_nor_sends_it_a_number(rule):
    session = session_of(small(rule), join("cpu"))
    first, second, *_ = batches(session, 1)
    train_batch(session, first)
    with Operations() as seen:
        train_batch(session, second)
    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh", "masked_select", "unique")
    assert len(seen.names) > 20
    assert not [name for name in seen.names if any(wait in name for wait in waits)]


def test_a_counted_step_drops_what_is_forgotten_as_a_step_of_its_own_does():
    model = convert(torch.nn.Sequential(torch.nn.Linear(4, 3)), "pfa")
    handle = couple(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    (feedback,) = [feedback for _, _, feedback in feedback_weights(model)]
    feedback.get_buffer("forgetting")[0] = 1e-12
    for _ in range(CHECK_INTERVAL - 1):
        handle.count_step()
    assert not feedback.pathway.forgotten
    handle.count_step()
    assert feedback.pathway.forgotten and handle.steps == CHECK_INTERVAL


@pytest.mark.parametrize(
    ("rule", "setting", "named"),
    [
        ("pfa", "train.gradient_accumulation=2", "gradient_accumulation"),
        ("pfa", "train.precision=fp16", "fp16"),
        ("wm", "train.phase_interval=1", "phases"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_refused(rule, setting, named):
    session = session_of(small(rule, setting), join("cpu"))
    with pytest.raises(UserError, match=f"cuda_graph.*{named}"):
        CapturedStep(session)


def test_on_a_cpu_nothing_is_recorded(tmp_path):
    train(small("pfa", "train.cuda_graph=true", "train.epochs=1"), output=tmp_path / "run", device="cpu")
    train(small("pfa", "train.cuda_graph=false", "train.epochs=1"), output=tmp_path / "plain", device="cpu")
    assert same_bytes(tmp_path / "run" / "last.safetensors", tmp_path / "plain" / "last.safetensors")


@needs_gpu
@pytest.mark.parametrize("setting", ["train.label_smoothing=0", ADAMW, "train.channels_last=true"])
@pytest.mark.parametrize("rule", ["bp", "pfa", "pfa-o", "kp", "usf", "dfa"])
def test_a_recorded_run_ends_with_the_bits_of_one_that_is_not(tmp_path, monkeypatch, rule, setting):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = [setting, "train.deterministic=true"]
    train(small(rule, *settings, "train.cuda_graph=true"), output=tmp_path / "run")
    train(small(rule, *settings, "train.cuda_graph=false"), output=tmp_path / "plain")
    assert same_bytes(tmp_path / "run" / "last.safetensors", tmp_path / "plain" / "last.safetensors")


def test_a_run_may_go_on_with_or_without_recording(tmp_path):
    short = ["train.epochs=1", "train.lr_schedule={name: constant}"]
    train(small("pfa", "train.cuda_graph=true", *short), output=tmp_path / "run", device="cpu")
    longer = small("pfa", "train.cuda_graph=false", *short, "train.epochs=2")
    assert train(longer, output=tmp_path / "run", resume=True, device="cpu").epochs == 2
