"""What the command line lists: recipes with their schema, everything as JSON, what TAB offers."""

import json
import shlex

import pytest
import yaml
from click.shell_completion import BashComplete
from training.runs import call

from pfa_convert.cli import cli
from pfa_convert.recipe import Recipe
from pfa_convert.recipe_files import packaged_files, packaged_recipes, schema_file
from pfa_convert.recipe_schema import recipe_schema
from pfa_convert.rules import RULES

jsonschema = pytest.importorskip("jsonschema")


def test_the_packaged_schema_is_that_of_the_recipes():
    schema = recipe_schema()
    assert json.loads(schema_file().read_text()) == json.loads(json.dumps(schema))
    called = call("recipes", "--schema")
    assert called.code == 0 and json.loads(called.printed) == json.loads(schema_file().read_text())
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", packaged_files())
def test_every_packaged_file_names_the_schema_and_follows_it(name):
    text = packaged_files()[name].read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.validate(yaml.safe_load(text), recipe_schema())
    for file, choice in packaged_recipes(name).values():
        jsonschema.validate(file.content(choice), recipe_schema())


@pytest.mark.parametrize(
    "content",
    [
        {"trian": {}},
        {"train": {"epochs": "many"}},
        {"convert": {"rule": "pfaa"}},
        {"data": {"dataset": "mnits"}},
        {"train": {"lr_schedule": {"name": "cosin"}}},
        {"extends": 3},
    ],
)
def test_the_schema_refuses_what_the_command_refuses(content):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, recipe_schema())


def test_the_schema_accepts_what_the_command_accepts():
    for content in (
        {"extends": "mnist-mlp", "train": {"epochs": 3}},
        {"convert": {"rule": "my_rules:Rounded", "overrides": {"fc": "bp"}}},
        {"train": {"optimizer": {"name": "AdamW", "betas": [0.9, 0.99]}}},
    ):
        jsonschema.validate(content, recipe_schema())


def test_every_key_is_explained():
    def below(schema, path=()):
        for name, field in schema.model_fields.items():
            kind = field.annotation
            if hasattr(kind, "model_fields"):
                assert kind.__doc__, name
                yield from below(kind, (*path, name))
            else:
                yield ".".join((*path, name)), field.description

    described = dict(below(Recipe))
    assert "train.optimizer.lr" in described
    assert all(text for key, text in described.items() if key != "expect")


def test_a_recipe_is_shown_as_a_file_or_put_together():
    path = packaged_files()["mnist-mlp"]
    assert call("recipes", "mnist-mlp").printed == path.read_text()
    shown = yaml.safe_load(call("recipes", "mnist-sparse-pfa-0.3").printed)
    assert shown["convert"]["options"]["feedback_density"] == 0.3
    assert shown == json.loads(call("recipes", "mnist-sparse-pfa-0.3", "--json").printed)


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (["rules"], lambda found: set(found) == set(RULES)),
        (["rules", "pfa"], lambda found: found["options"]["expansion"]["bounds"] == "> 0, <= 10000"),
        (["recipes"], lambda found: "pfa" in found["mnist-mlp"]["variants"]["rule"]),
        (["models", "paper/"], lambda found: "paper/mlp" in found),
        (["paper/mlp"], lambda found: found["counts"] == {"pfa": 3}),
    ],
)
def test_lists_and_reports_as_json(arguments, holds):
    called = call(*arguments, "--json")
    assert called.code == 0 and holds(json.loads(called.printed)), called


def test_a_run_as_json(tmp_path):
    arguments = ["--set", "train.epochs=1", "--set", "model.hidden=[16]", "--output", tmp_path / "run"]
    called = call("train", "digits-mlp-pfa", *arguments, "--json")
    assert json.loads(called.printed) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "epoch   1/1" in called.errors


def test_a_table_is_listed_for_a_job_array(tmp_path):
    arguments = ["--seeds", "0-1", "--rules", "bp,pfa", "--set", "train.epochs=1", "--output", tmp_path]
    called = call("reproduce", "digits-mlp", *arguments, "--list")
    lines = called.printed.splitlines()
    assert called.code == 0 and len(lines) == 4
    assert all(line.startswith("pfa-convert train ") and " --resume " in line for line in lines)
    done = call(*shlex.split(lines[1])[1:])
    assert done.code == 0 and (tmp_path / "digits-mlp-pfa" / "seed-0" / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "begun", "offered"),
    [
        ([], "resnet5", {"resnet50", "resnet50d"}),
        ([], "tra", {"train"}),
        (
            ["train", "x", "--set"],
            "train.optimizer.",
            {"train.optimizer.lr=", "train.optimizer.weight_decay="},
        ),
        (["train", "x", "--set"], "train.ep", {"train.epochs="}),
        (["paper/resnet20", "--override"], "layer3.2", {"layer3.2.conv1=", "layer3.2.conv2="}),
        (["convert", "paper/mlp", "--override"], "5=pf", {"5=pfa", "5=pfa-o"}),
        (["recipes"], "digits-mlp", {"digits-mlp", "digits-mlp-pfa"}),
    ],
)
def test_tab_offers(words, begun, offered):
    found = {item.value for item in BashComplete(cli, {}, "pfa-convert", "_").get_completions(words, begun)}
    assert offered <= found and all(name.startswith(begun) for name in found)
