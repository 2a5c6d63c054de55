"""The training loop: schedules, augmentation, results, and resuming."""

import hashlib
import json
import math
from datetime import datetime
from importlib.metadata import version

import pytest
import torch
from rich.console import Console
from runs import same_bytes
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pfa_convert import UserError, load_recipe, train
from pfa_convert.data import load_data
from pfa_convert.data.base import DeviceSplit, Normalisation, Shard
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.recipe import ScheduleSection
from pfa_convert.reporting.run_progress import ProgressWatcher
from pfa_convert.rules import RULES
from pfa_convert.seeds import derived_seed
from pfa_convert.training.forgetting import share_left
from pfa_convert.training.schedules import factor
from pfa_convert.training.setup import make_model
from pfa_convert.training.watcher import Watcher

CPU = torch.device("cpu")


def test_schedules_are_functions_of_epochs_completed():
    multistep = ScheduleSection(milestones=[1, 3], gamma=0.5)
    assert [factor(multistep, epoch, 5) for epoch in range(5)] == [1, 0.5, 0.5, 0.25, 0.25]
    cosine = ScheduleSection(name="cosine", warmup_epochs=1)
    linear = ScheduleSection(name="linear")
    assert [factor(linear, epoch, 5) for epoch in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    values = [factor(cosine, epoch, 5) for epoch in range(5)]
    expected = [0.5, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]
    assert values == pytest.approx(expected)


def test_augmentation_is_a_flip_and_a_shift_with_black():
    images = torch.arange(1, 1 + 3 * 4 * 4, dtype=torch.uint8).view(1, 3, 4, 4).repeat(64, 1, 1, 1)
    normalisation = Normalisation((0.5,) * 3, (1 / 255,) * 3)  # black is then -127.5, the mean 0
    split = DeviceSplit(images, torch.zeros(64).long(), normalisation, flip=True, padding=1)
    ((batch, _),) = split.batches(64, Shard(), order_seed=1)
    padded = torch.nn.functional.pad(images[0].float(), (1, 1, 1, 1))
    allowed = []
    for dy in range(3):
        for dx in range(3):
            allowed.append(padded[:, dy : dy + 4, dx : dx + 4])
            flipped = torch.nn.functional.pad(images[0].float().flip(2), (1, 1, 1, 1))
            allowed.append(flipped[:, dy : dy + 4, dx : dx + 4])
    seen = set()
    for image in batch:
        image = image + 127.5
        matches = [i for i, candidate in enumerate(allowed) if torch.allclose(image, candidate, atol=1e-3)]
        assert matches
        seen.update(matches)
    assert len(seen) > 9


def test_shares_of_two_processes_make_up_the_whole_batch():
    data = load_data("digits", None, validation=100, device=CPU, workers=0, options={})
    assert (len(data.train), len(data.evaluation), len(data.test)) == (1337, 100, 360)
    whole = [images for images, _ in data.train.batches(64, Shard(), order_seed=3)]
    halves = [[images for images, _ in data.train.batches(64, Shard(r, 2), order_seed=3)] for r in (0, 1)]
    for full, even, odd in zip(whole, *halves, strict=True):
        assert torch.equal(full[::2], even) and torch.equal(full[1::2], odd)


def untrained_alignment(recipe, seed):
    """Angles and norm ratios of a model on which no step was made, from `F` and `W` themselves."""
    model = make_model(recipe, seed, CPU)
    by_site = {}
    for name, W, feedback in feedback_weights(model):
        F = feedback.feedback_weight(W).double().flatten()
        W = W.detach().double().flatten()
        degrees = torch.rad2deg(torch.acos(F @ W / (F.norm() * W.norm()))).item()
        ratio = (F.norm() / W.norm()).item()
        by_site[name.removesuffix(".weight")] = {
            "angle_deg": pytest.approx(degrees),
            "norm_ratio": pytest.approx(ratio),
        }
        assert 75 < degrees < 105
    means = {
        key: pytest.approx(sum(v[key].expected for v in by_site.values()) / len(by_site))
        for key in ("angle_deg", "norm_ratio")
    }
    return {**means, "alignment": by_site}


def test_the_log_and_result_of_a_run(tmp_path):
    recipe = load_recipe("digits-mlp-pfa", ["train.epochs=8"])
    result = train(recipe, output=tmp_path, seed=4)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(9))
    assert [record["weight_decay"] for record in records[5:7]] == pytest.approx([0.03, 0.03 * 0.003])
    assert records[1]["angle_deg"] > records[-1]["angle_deg"] and records[-1]["angle_deg"] < 25
    assert records[0] == {"epoch": 0, **untrained_alignment(recipe, seed=4)}
    assert result.final_top1 == records[-1]["test_top1"] > 93
    assert train(recipe, output=tmp_path, seed=4, resume=True) == result
    with pytest.raises(UserError, match="another recipe or seed"):
        train(recipe, output=tmp_path, seed=5, resume=True)
    kept = tmp_path / "recipe.yaml"  # as a version wrote it that did not know the key yet
    kept.write_text(kept.read_text().replace("  phase_interval: 1\n", ""))
    assert train(recipe, output=tmp_path, seed=4, resume=True) == result
    kept.write_text("name: [")
    with pytest.raises(UserError, match=r"recipe\.yaml: "):
        train(recipe, output=tmp_path, seed=4, resume=True)


def test_tensorboard_shows_the_log(tmp_path):
    recipe = load_recipe("digits-mlp-pfa", ["train.epochs=2", "train.gradient_angles=true"])
    train(recipe, output=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag in ("test_top1", "train_loss", "lr"):
        points = [(event.step, event.value) for event in shown.Scalars(tag)]
        assert points == [(r["epoch"], pytest.approx(r[tag], rel=1e-6)) for r in records[1:]]
    site = next(iter(records[0]["alignment"]))
    for tag, key in (("angle_deg", "alignment"), ("gradient_angle_deg", "gradient_angle_deg")):
        values = [event.value for event in shown.Scalars(f"{tag}/{site}")]
        logged = [r[key][site]["angle_deg"] if key == "alignment" else r[key][site] for r in records]
        assert values == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("rule", list(RULES))
def test_the_same_seed_gives_the_same_bytes(tmp_path, rule):
    recipe = load_recipe(f"digits-mlp-{rule}", ["train.epochs=2"])
    finals = []
    for name in ("a", "b"):
        train(recipe, output=tmp_path / name, seed=0)
        finals.append(load_file(tmp_path / name / "last.safetensors"))
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


def test_gradient_angles_are_logged_on_request_and_change_nothing(tmp_path):
    settings = ["train.epochs=2"]
    train(load_recipe("digits-mlp-pfa", settings), output=tmp_path / "without")
    train(load_recipe("digits-mlp-pfa", [*settings, "train.gradient_angles=true"]), output=tmp_path / "with")
    lines = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        angles = line["gradient_angle_deg"]
        assert angles.keys() == line["alignment"].keys()
        assert angles["5"] < 0.1 < angles["1"] < 90  # the error at the last layer is backpropagation's
    assert same_bytes(tmp_path / "without" / "best.safetensors", tmp_path / "with" / "best.safetensors")


def test_the_order_of_images_is_a_function_of_seed_and_epoch_on_every_python():
    digest = hashlib.sha256(b"3/images of epoch 2").hexdigest()
    assert derived_seed(3, "images of epoch 2") == int(digest[:16], 16) // 2


def test_a_run_tells_where_and_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/pfa-convert", "train", "digits-mlp-bp", "--seed", "3"])
    train(load_recipe("digits-mlp-bp", ["train.epochs=0"]), output=tmp_path, seed=3)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["command"] == "pfa-convert train digits-mlp-bp --seed 3"
    assert (found["seed"], found["data"], found["device"]) == (3, None, "cpu")
    assert found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["pfa_convert"] == version("pfa-convert") and found["processor"]


def test_without_a_compiler_the_model_runs_uncompiled_and_one_line_says_so(tmp_path, monkeypatch, capfd):
    import torch._inductor.config  # noqa: F401 (reads CXX once, and other tests need it)

    settings = ["train.epochs=1", "train.compile=true"]
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    watcher = ProgressWatcher(Console(width=200))
    result = train(load_recipe("digits-mlp-pfa", settings), output=tmp_path / "run", watcher=watcher)
    watcher.stop()
    plain = train(load_recipe("digits-mlp-pfa", settings[:1]), output=tmp_path / "plain")
    assert result.final_top1 == plain.final_top1
    said = [line for line in capfd.readouterr().out.splitlines() if "compiler" in line]
    assert [line.strip() for line in said] == [
        "no C++ compiler found (CXX names one): the model runs uncompiled"
    ]


@pytest.mark.parametrize("threads", [None, 1])
def test_a_compiled_run_ends_with_the_weights_of_one_that_is_not(tmp_path, threads):
    settings = ["train.epochs=1", "train.gradient_angles=true", "data.batch_size=256"]
    recipe = load_recipe("digits-mlp-pfa", [*settings, "train.compile=true"])
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(recipe, output=tmp_path / "compiled", threads=threads)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    train(load_recipe("digits-mlp-pfa", settings), output=tmp_path / "plain", threads=threads)
    compiled, plain = (load_file(tmp_path / run / "last.safetensors") for run in ("compiled", "plain"))
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_what_the_schedules_leave_of_the_start_is_known_before_the_run(tmp_path, nesterov):
    settings = ["train.epochs=4", "train.lr_schedule={name: cosine}", f"train.optimizer.nesterov={nesterov}"]
    recipe = load_recipe("digits-mlp-pfa", settings)
    watcher = Notes()
    train(recipe, output=tmp_path, watcher=watcher)
    kept = load_file(tmp_path / "last.safetensors")
    s = next(value[0].item() for name, value in kept.items() if name.endswith(".forgetting"))
    steps = math.ceil((1797 - 360) / recipe.data.batch_size)
    assert share_left(recipe, steps)[-1] == pytest.approx(s, rel=1e-9)
    assert watcher.notes == [f"by its schedules, the run leaves {s:.2%} of what F began with"]


def test_what_is_left_is_known_for_sgd_alone(tmp_path):
    recipe = load_recipe("digits-mlp-pfa", ["train.optimizer={name: adamw, lr: 0.001}"])
    assert share_left(recipe, 10) is None
    train(load_recipe("digits-mlp-fa", ["train.epochs=1"]), output=tmp_path, watcher=(watcher := Notes()))
    assert watcher.notes == []


class Notes(Watcher):
    """Keeps what a run tells beside its progress."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_nan_names_where_it_began(tmp_path):
    recipe = load_recipe("digits-mlp-bp", ["train.epochs=3", "train.optimizer.lr=1e30"])
    with pytest.raises(UserError, match=r"in epoch 1: first not finite was the output of 3$"):
        train(recipe, output=tmp_path)


def test_pfa_aligns_under_adamw_as_it_does_under_sgd(tmp_path):
    settings = [
        "train.epochs=12",
        "train.optimizer={name: adamw, lr: 0.002, weight_decay: 8}",
        "train.weight_decay_schedule={milestones: [6], gamma: 0.001}",
    ]
    result = train(load_recipe("digits-mlp-pfa", settings), output=tmp_path)
    assert result.final_top1 > 90
    tensors = load_file(tmp_path / "last.safetensors")
    assert not any(name.endswith(".R") for name in tensors)
    s = {name: t[0].item() for name, t in tensors.items() if name.endswith("forgetting")}
    assert s and max(s.values()) < 0.05
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    for site in ("1", "3"):  # atan(1 / sqrt(10)) = 17.5 degrees, for matrices of 128 outputs
        assert last["alignment"][site]["angle_deg"] == pytest.approx(17.5, abs=2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.optimizer.momentun=0.5", "SGD takes no 'momentun'; did you mean 'momentum'"),
        ("train.optimizer.name=sgdd", "did you mean 'sgd'"),
        ("data.dataset=mnits", "did you mean 'mnist'"),
        ("data.validation=5000", "leaves none"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        train(load_recipe("digits-mlp-pfa", [setting]), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
