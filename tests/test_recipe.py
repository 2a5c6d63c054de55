"""Recipes: what is accepted, what is refused, and that every packaged one is sound."""

import pytest
import torch
import yaml
from training.runs import call

from pfa_convert import UserError, couple, load_recipe, recipe_files
from pfa_convert.convert import convert
from pfa_convert.models import build
from pfa_convert.recipe import OptimizerSection
from pfa_convert.recipe_check import optimizers
from pfa_convert.recipe_files import packaged_recipes
from pfa_convert.reporting.results import paper
from pfa_convert.reporting.rows import PAPER_SEEDS
from pfa_convert.training.schedules import factor, set_schedules
from pfa_convert.training.setup import make_model, make_optimizer


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_is_valid_and_its_conversion_possible(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    plain = build(recipe.model.name, recipe.model.num_classes, **recipe.model.options).to("meta")
    section = recipe.convert
    converted = convert(plain, section.rule, options=section.options, overrides=section.overrides)
    assert converted.conversion.counts() == {section.rule: len(converted.conversion.sites)}


@pytest.mark.parametrize("rule", ["bp", "pfa"])
def test_the_optimizer_gets_the_papers_mnist_protocol(rule):
    """Li & Benna 2024: lr 0.01, halved at epochs 20 and 30; a decay of 0.03 in the first epoch, then 9e-5."""
    recipe = load_recipe(f"mnist-mlp-{rule}")
    optimizer = make_optimizer(recipe.train.optimizer, torch.nn.Linear(2, 2))
    assert type(optimizer) is torch.optim.SGD
    got = []
    for epoch in range(recipe.train.epochs):
        set_schedules(recipe.train, optimizer, epoch)
        (group,) = optimizer.param_groups
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, False, 0)
        got.append((group["lr"], group["weight_decay"]))
    rates = [0.01] * 20 + [0.005] * 10 + [0.0025] * 10
    decays = [0.03] + [9e-5] * 39 if rule == "pfa" else [1e-4] * 40
    assert got == [(pytest.approx(lr), pytest.approx(wd)) for lr, wd in zip(rates, decays, strict=True)]


def test_runs_are_as_long_and_as_many_as_the_papers():
    experiments = {name: rules for name, rules in paper().items() if name != "source"}
    assert len(experiments) > 2
    for experiment, rules in experiments.items():
        # One curve of ImageNet was published before its end.
        longest = 1 + max(published["final_epoch"] for published in rules.values())
        assert {load_recipe(f"{experiment}-{rule}").train.epochs for rule in rules} == {longest}
    assert len(load_recipe("mnist-mlp-pfa").train.seeds) == PAPER_SEEDS


@pytest.mark.parametrize("name", packaged_recipes())
def test_what_a_recipe_expects_is_what_its_run_measures(name):
    recipe = load_recipe(name)
    if recipe.expect is not None:
        assert recipe.expect.metric == ("validation_top1" if recipe.data.validation else "test_top1")


@pytest.mark.parametrize(
    ("base", "plastic_decay", "first_epochs"),
    [
        ("mnist-mlp", 0.03, 1),
        ("cifar10-resnet20", 0.005, 1),
        ("cifar10-resnet20-short", 0.005, 1),
        ("cifar10-resnet56", 0.005, 1),
        ("imagenet-resnet18", 0.0005, 1),
        ("imagenet-resnet50", 0.0005, 1),
        ("imagenette-resnet18", 0.02, 5),
    ],
)
@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "usf", "kp", "pfa", "pfa-o"])
def test_the_weight_decay_of_each_rule(base, rule, plastic_decay, first_epochs):
    train = load_recipe(f"{base}-{rule}").train

    def decay(epoch):
        return train.optimizer.weight_decay * factor(train.weight_decay_schedule, epoch, train.epochs)

    plastic = rule in ("kp", "pfa", "pfa-o")
    ordinary = pytest.approx(9e-5 if plastic and base == "mnist-mlp" else 1e-4)
    assert decay(train.epochs - 1) == decay(first_epochs) == ordinary
    assert decay(0) == decay(first_epochs - 1)
    assert decay(0) == (plastic_decay if plastic else ordinary)
    slower = 0.01 if rule == "dfa" and "cifar" in base else 1
    assert train.optimizer.lr == load_recipe(base).train.optimizer.lr * slower


def test_variants_are_inherited_changed_added_and_left_out(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "model: {name: paper/mlp}\ntrain: {epochs: 2}\n"
        "variants: {rule: {fa: {convert: {rule: fa}}, kp: {convert: {rule: kp}, train: {epochs: 5}}}}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: base\ntrain: {seeds: [7]}\nvariants:\n"
        "  rule: {fa: null, usf: {convert: {rule: usf}}}\n"
        "  size: {small: {train: {epochs: 1}}, large: {}}\n"
    )
    assert load_recipe(f"{base}:kp").train.epochs == 5
    small, large = load_recipe(f"{child}:kp-small"), load_recipe(f"{child}:kp-large")
    assert (small.name, small.convert.rule, small.train.epochs) == ("child-kp-small", "kp", 1)
    assert (large.train.epochs, large.train.seeds) == (5, [7])
    assert load_recipe(f"{child}:usf-large").convert.rule == "usf"
    with pytest.raises(UserError, match="no variant 'fa-small'; did you mean 'usf-small'"):
        load_recipe(f"{child}:fa-small")
    assert load_recipe(child).convert.rule == "pfa"


def test_the_files_that_extend_say_last_what_holds_for_all_their_variants():
    assert load_recipe("cifar10-resnet20-pfa").expect.mean == 90.7
    assert load_recipe("cifar10-resnet20-short-pfa").expect is None
    sparse = load_recipe("mnist-sparse-pfa-0.3").convert
    options = {"expansion": 10, "law": "uniform", "feedback_density": 0.3}
    assert (sparse.rule, sparse.options) == ("pfa", options)


def test_a_recipe_extends_another_and_settings_come_last(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: digits-mlp-pfa\nname: mine\ntrain: {epochs: 3}\n")
    recipe = load_recipe(path, ["train.optimizer.lr=0.5", "convert.options={expansion: 3}"])
    assert (recipe.name, recipe.train.epochs, recipe.train.optimizer.lr) == ("mine", 3, 0.5)
    assert recipe.convert.options == {"expansion": 3} and recipe.convert.rule == "pfa"


def test_a_recipe_survives_being_written_out(tmp_path):
    recipe = load_recipe("mnist-mlp-pfa")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: paper/mlp}\nconvert: {rul: pfa}", "unknown key 'convert.rul'; did you mean 'rule'"),
        ("model: {name: paper/mlp}\ntrian: {}", "unknown key 'trian'; did you mean 'train'"),
        ("model: {name: paper/mlp}\ntrain: {epochs: many}", "key 'train.epochs'"),
        ("model: {name: paper/mlp}\ntrain: {epochs: -1}", "greater than or equal to 0"),
        ("model: {name: paper/mlp}\ntrain: {precision: fp8}", "'train.precision'"),
        ("convert: {rule: pfa}", "the key 'model' is missing"),
        ("[1, 2]", "not a mapping"),
        ("model: {name: [", "not valid YAML"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("extends: nosuch\nmodel: {name: paper/mlp}", "unknown recipe 'nosuch'"),
        ("extends: bad", "extends itself"),
        ("[" * 5000, "not valid YAML"),
        ("variants: [a]", "key 'variants'"),
        ("variants: {rule: fa}", "key 'variants': 'rule'"),
        ("variants: {rule: {1: {}}}", "key 'variants': 'rule'"),
        ("variants: {rule: {fa: 3}}", "key 'variants.rule.fa'"),
        ("extends: [a]\nmodel: {name: paper/mlp}", "key 'extends'"),
        ("model: {name: paper/mlp}\nname: ../../elsewhere", "key 'name'"),
        (
            "model: {name: paper/mlp}\ntrain: {epochs: 3}\ntrain: {epochs: 4}",
            "'train' is given twice, line 3",
        ),
        ("model: {name: paper/mlp}\ntrain: {seeds: []}", "key 'train.seeds'"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {lr: .inf}}", "finite number"),
        (
            "model: {name: paper/mlp}\ntrain: {lr_schedule: {name: cosine, gamma: 0.5}}",
            "a cosine schedule has no gamma",
        ),
        (
            "model: {name: paper/mlp}\ntrain: {lr_schedule: {milestones: [3, 1]}}",
            "not in ascending order",
        ),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {name: adamw, momentum: 0.9}}", "takes no 'momentum'"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {name: sgdd}}", "did you mean 'sgd'"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {momentum: -1}}", "Invalid momentum"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {name: lbfgs}}", "unknown optimizer 'lbfgs'"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {name: adam, betas: [0.9]}}", "Adam: list index out"),
        ("model: {name: paper/mlp}\ntrain: {optimizer: {nesterov: maybe}}", "nesterov is true or false"),
        ("model: {name: paper/mlp}\ntrain: {epochs: 1000000000}", "less than or equal to 100000"),
        (
            "model: {name: paper/mlp}\ndata: {dataset: synthetic, options: {images: 99999999999999}}",
            "options.images",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert message in str(error.value)


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(UserError, match="too large"):
        load_recipe(tmp_path / "huge.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A folder that stands for the one of the packaged recipes."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    monkeypatch.setattr(recipe_files, "_folder", lambda: folder)
    return folder


VARIANTS = "model: {name: paper/mlp}\nvariants: {rule: {fa: {convert: {rule: fa}}}}\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "extends: a\n"}, "a.yaml: extends itself"),
        ({"a.yaml": "extends: a-fa\n" + VARIANTS}, "a.yaml: extends itself"),
        ({"a.yaml": "extends: b-fa\n", "b.yaml": "extends: a-fa\n" + VARIANTS}, "a.yaml: extends itself"),
        ({"a.yaml": "extends: b\n", "b.yaml": "extends: c\n", "c.yaml": "extends: a\n"}, "extends itself"),
        ({"a.yaml": "extends: nosuch\n", "b.yaml": VARIANTS}, "unknown recipe 'nosuch'"),
        ({"a.yaml": "extends: b-f\n", "b.yaml": VARIANTS}, "unknown recipe 'b-f'"),
        ({"a.yaml": "extends: b.yaml:f\n", "b.yaml": VARIANTS}, "no variant 'f'; did you mean 'fa'"),
    ],
)
def test_packaged_recipes_that_extend_themselves_are_refused_in_a_line(packaged, files, message):
    for name, text in files.items():
        (packaged / name).write_text(text)
    for source in ("a", "a-fa", packaged / "a.yaml"):
        called = call("train", source)
        assert called.code == 2 and called.errors.count("\n") == 1 and message in called.errors, called


def test_a_recipe_may_extend_a_variant_of_another_file(packaged, tmp_path):
    (packaged / "base.yaml").write_text(VARIANTS)
    (packaged / "of-packaged.yaml").write_text("extends: base-fa\ntrain: {epochs: 3}\n")
    beside = tmp_path / "beside.yaml"
    beside.write_text("extends: packaged/base.yaml:fa\ntrain: {epochs: 3}\n")
    for source in ("of-packaged", beside):
        recipe = load_recipe(source)
        assert (recipe.convert.rule, recipe.train.epochs) == ("fa", 3)


def test_a_base_is_found_beside_the_recipe_that_extends_it(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {name: paper/mlp}\ntrain: {epochs: 2, seeds: [1, 2, 3]}\n")
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "mine.yaml"
    path.write_text("extends: ../base.yaml\ntrain: {seeds: [7]}\n")
    recipe = load_recipe(path)
    assert (recipe.train.epochs, recipe.train.seeds) == (2, [7])


def test_a_file_without_a_name_is_called_as_it_is_and_not_as_what_it_extends(tmp_path):
    path = tmp_path / "my first, at night.yaml"
    path.write_text("extends: digits-mlp\n")
    recipe, variant = load_recipe(path), load_recipe(f"{path}:pfa")
    assert (recipe.name, recipe.experiment) == ("my-first-at-night", "my-first-at-night")
    assert (variant.name, variant.experiment) == ("my-first-at-night-pfa", "my-first-at-night")


def test_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: {name: paper/mlp}\ntrain: {optimizer: {name: AdamW, lr: 1e-3, eps: 1e-8}}\n")
    arguments = load_recipe(path, ["train.optimizer.weight_decay=5E-4"]).train.optimizer.arguments
    assert arguments == {"lr": 1e-3, "eps": 1e-8, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    "setting", ["train.epochs", "=3", "train..epochs=3", "name.x=1", "name=[", "name=*x"]
)
def test_a_malformed_setting_is_refused(setting):
    with pytest.raises(UserError, match="--set"):
        load_recipe("digits-mlp-pfa", [setting])


@pytest.mark.parametrize("settings", [["train.optimizer=5"], ["train=null"], ["train.optimizer.name=[a]"]])
def test_settings_that_overlap_are_refused_as_any_mistake(settings):
    with pytest.raises(UserError, match="key 'train"):
        load_recipe("digits-mlp-pfa", ["train.optimizer.name=adamw", *settings])


@pytest.mark.parametrize("name", sorted(set(optimizers()) - {"muon"}))
def test_a_run_with_any_optimizer_can_be_read_again_and_is_coupled(name, tmp_path):
    settings = [f"train.optimizer.name={name}", "model.hidden=[8]"]
    recipe = load_recipe("digits-mlp-pfa", settings, note=str)
    kept = tmp_path / "recipe.yaml"
    kept.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(kept) == recipe
    model = make_model(recipe, 0, torch.device("cpu"))
    couple(model, make_optimizer(recipe.train.optimizer, model))


@pytest.mark.parametrize("argument", [{"differentiable": True}, {"capturable": True}, {"lr": 1e300}])
def test_an_optimizer_that_cannot_make_a_step_is_refused(argument):
    section = OptimizerSection(name="adamw", **argument)
    with pytest.raises(UserError, match="optimizer: "):
        make_optimizer(section, torch.nn.Linear(2, 2))


def test_a_weight_decay_that_is_not_given_is_none_from_the_first_step_on():
    optimizer = make_optimizer(OptimizerSection(name="adamw"), torch.nn.Linear(2, 2))
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", packaged_recipes())
def test_the_recipe_that_a_run_keeps_is_the_same_recipe_when_loaded(name, tmp_path):
    recipe = load_recipe(name)
    kept = tmp_path / "recipe.yaml"
    kept.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(kept).to_dict() == recipe.to_dict()
