"""Mistakes of a user's: one line each, from Python and from the command line, naming what to do instead."""

import pytest
import torch
import yaml
from torch import nn
from training.runs import call

from pfa_convert import UserError, convert, load, load_recipe
from pfa_convert.data import load_data
from pfa_convert.models import build
from pfa_convert.rules import RULES

CPU = torch.device("cpu")

MINE = """
import torch
from torch import nn
from pfa_convert.rules import Rule
from pfa_convert.rules.fixed import FeedbackAlignment

net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 4))
number = 3

def make(): return net
def wrong(): return 1 / 0
def picky(width): return nn.Linear(width, width)

class Rounded(FeedbackAlignment):
    name, title = "rounded", "a rule of one's own"
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "its_own_module.py").write_text(MINE)
    (tmp_path / "broken_module.py").write_text("nothing.at_all\n")
    monkeypatch.chdir(tmp_path)
    return "its_own_module"


def one_line(*arguments):
    """What a command says of a mistake."""
    called = call(*arguments)
    assert called.code == 2 and called.errors.startswith("pfa-convert: "), called
    assert called.errors.count("\n") == 1 and called.printed == "", called
    return called.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "digits-mlp-pfa"], "unknown command or model 'trian'; did you mean 'train'?"),
        (["reprot", "runs"], "did you mean 'report'"),
        (["paper/mlp", "--output", "."], "--output: . is a folder; name a file in it"),
        (["train", "digits-mlp-pfa", "--device", "gpu"], "--device: unknown device 'gpu'"),
        (["train", "digits-mlp-pfa", "--device", "cuda:77"], "--device: this machine cannot use 'cuda:77'"),
        (["bench", "paper/mlp", "--device", "cuda:77"], "--device: this machine cannot use 'cuda:77'"),
        (["bench", "paper/mlp", "--device", "gpu"], "--device: unknown device 'gpu'"),
        (["bench", "paper/mlp", "--rules", "pfaa"], "did you mean 'pfa'"),
        (["bench", "paper/mlp", "--plot", "."], "--plot: . is a folder"),
        (["models", "resnet18", "--check", "--output", "."], "--output: . is a folder"),
        (["reproduce", "digits-mlp-bp", "--device", "gpu"], "--device: unknown device 'gpu'"),
        (["reproduce", "mnist", "--data", "nowhere"], "--data: there is no folder 'nowhere'"),
        (["inspect", "."], "is not the folder of a run"),
        (["inspect", "no-such-folder"], "no-such-folder"),
        (["recipes", "mnist-mpl"], "did you mean 'mnist-mlp'"),
        (["broken_module:net"], "'broken_module' fails as it is imported: NameError: name 'nothing'"),
        (["its_own_module:number"], "is no function that returns a model: int"),
        (["its_own_module:wrong"], "cannot be made: ZeroDivisionError: division by zero"),
        (["train", "digits-mlp-pfa", "--set", "model.hidden=[-3]"], "model paper/mlp: Trying to create"),
        (["train", "digits-mlp-pfa", "--threads", "100000"], "--threads"),
        (["its_own_module:picky"], "cannot be made: TypeError: picky() missing 1 required"),
        (["its_own_module:nett"], "did you mean 'net'"),
        (["its_own_module:net", "--num-classes", "3"], "is a model already, which takes no num_classes"),
        (["paper/mlp", "--rule", "its_own_module:Roundedd"], "did you mean 'Rounded'"),
        (["paper/mlp", "--rule", "its_own_module:make"], "is not a class that inherits from"),
    ],
)
def test_the_command_line_says_it_in_one_line(arguments, words, mine):
    assert words in one_line(*arguments)


def test_a_model_that_is_there_already_is_copied(mine):
    called = call(f"{mine}:net", "--json")
    assert called.code == 0, called
    import its_own_module

    assert type(its_own_module.net[1]) is nn.Linear and not hasattr(its_own_module.net, "conversion")


def test_a_rule_of_ones_own_by_its_module(mine, tmp_path):
    called = call("paper/mlp", "--rule", f"{mine}:Rounded", "--output", tmp_path / "m.safetensors")
    assert called.code == 0 and "3 sites converted (3 rounded)" in called.printed, called
    assert load(tmp_path / "m.safetensors").conversion.counts() == {"rounded": 3}
    settings = [f"convert.rule={mine}:Rounded", "convert.options={feedback_density: 1}"]
    recipe = load_recipe("digits-mlp-bp", settings)
    assert recipe.convert.rule == f"{mine}:Rounded" and "rounded" not in RULES


def test_overrides_may_be_a_mapping():
    plain = build("paper/resnet20")
    short = convert(plain, "pfa", overrides={"fc": "bp", "layer1.*": {"options": {"expansion": 2}}})
    long = convert(
        plain,
        "pfa",
        overrides=[{"match": "fc", "rule": "bp"}, {"match": "layer1.*", "options": {"expansion": 2}}],
    )
    assert short.conversion == long.conversion and short.conversion.counts() == {"pfa": 19, "bp": 1}
    with pytest.raises(UserError, match=r"overrides\[0\]: 'fc' is not a mapping such as"):
        convert(plain, overrides=["fc"])
    with pytest.raises(UserError, match="'rule': not a text: 3"):
        convert(plain, overrides={"fc": 3})


def test_all_mistakes_of_a_recipe_are_named_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    content = {
        "model": {"name": "resnet5o"},
        "convert": {"rule": "pfaa", "overrides": {"fc": {"rule": "fa", "options": {"densty": 3}}}},
        "data": {"dataset": "synthetic", "options": {"imags": 3, "shape": ["a"]}},
        "train": {"epochs": "many", "optimizer": {"momentun": 0.9}, "lr_schedle": {}},
    }
    path.write_text(yaml.safe_dump(content))
    said = one_line("train", path)
    assert f"{path}: 8 mistakes: " in said
    for words in (
        "unknown key 'train.lr_schedle'; did you mean 'lr_schedule'",
        "key 'train.epochs'",
        "model.name: unknown model 'resnet5o'; did you mean",
        "convert.rule: unknown rule 'pfaa'; did you mean 'pfa'",
        "convert.overrides[0].options: unknown option 'densty'; did you mean 'feedback_density'",
        "unknown key 'data.options.imags'; did you mean 'images'",
        "key 'data.options.shape.0'",
        "SGD takes no 'momentun'; did you mean 'momentum'",
    ):
        assert words in said


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "imagenet", "imagefolder", "synthetic"])
def test_every_data_set_refuses_options_that_it_does_not_have(dataset, tmp_path):
    arguments = {"validation": 0, "device": CPU, "workers": 0}
    with pytest.raises(UserError, match="unknown option 'imgsize'"):
        load_data(dataset, tmp_path, options={"imgsize": 3}, **arguments)
    with pytest.raises(UserError, match=r"data\.options\.imgsize"):
        load_recipe("digits-mlp-bp", [f"data.dataset={dataset}", "data.options={imgsize: 3}"])


def test_another_optimizer_is_one_setting():
    settings, said = ["train.optimizer.name=adamw", "train.optimizer.lr=0.002"], []
    changed = load_recipe("mnist-mlp-pfa", settings, said.append)
    assert changed.train.optimizer.model_dump() == {"name": "adamw", "lr": 0.002, "weight_decay": 0.03}
    left_out = "train.optimizer: AdamW takes no momentum of the recipe's: left out; kept: weight_decay 0.03"
    assert said == [left_out]
    with pytest.warns(UserWarning, match="takes no momentum"):
        load_recipe("mnist-mlp-pfa", settings)
    assert load_recipe(
        "mnist-mlp-pfa", ["train.optimizer.name=rmsprop"], pytest.fail
    ).train.optimizer.arguments == {
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.03,
    }
    with pytest.raises(UserError, match="AdamW takes no 'momentum'"):
        load_recipe("mnist-mlp-pfa", ["train.optimizer.name=adamw", "train.optimizer.momentum=0.9"])


def test_no_message_shows_a_temporary_name(tmp_path):
    target = tmp_path / "model.safetensors"
    target.mkdir()
    said = one_line("paper/mlp", "--output", target)
    assert ".part" not in said
    folder = tmp_path / "run"
    (folder / "log.jsonl").mkdir(parents=True)
    said = one_line("train", "digits-mlp-bp", "--set", "train.epochs=1", "--output", folder)
    assert ".part" not in said and str(folder) in said


def test_a_bare_command_shows_the_help():
    called = call()
    assert called.code == 0 and "Usage:" in called.printed and called.errors == ""
