"""Whatever a user gives: done as asked, or refused with exit code 2 and one line; never a traceback.

A success must be one: what was accepted is valid by the schema, and what a run keeps is what was given.
"""

import contextlib
import copy
import io
import json
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfa_convert import load
from pfa_convert.cli import main
from pfa_convert.recipe_files import schema_file
from pfa_convert.training.run_folder import flat

VALID = {
    "name": "fuzzed",
    "model": {"name": "paper/mlp", "num_classes": 10, "in_features": 64, "hidden": [12, 11]},
    "convert": {
        "rule": "pfa",
        "options": {"expansion": 3, "feedback_density": 0.5},
        "overrides": [{"match": "1", "rule": "bp"}, {"type": "Linear", "options": {"expansion": 2}}],
        "seed": 3,
    },
    "init": "xavier_uniform",
    "data": {"dataset": "digits", "batch_size": 32, "validation": 100},
    "train": {
        "epochs": 0,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.03},
        "lr_schedule": {"milestones": [20, 25], "gamma": 0.3},
        "precision": "fp32",
        "seeds": [0, 1],
        "ema": 0.9,
    },
    "expect": {"metric": "test_top1", "mean": 98.0, "std": 0.1},
}

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"), -0.0, 1e-300, 1e300]),
    st.floats(width=32),
    st.text(max_size=12),
    st.sampled_from(
        ["pfa", "fused", "sgd", "digits", "paper/mlp", "../..", "re:(", "*", "\0", "~", "${x}", "0x10"]
    ),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=4), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=6), st.one_of(st.integers(), st.text(max_size=4)), max_size=3),
)


def places(content, path=()):
    """Every place in nested mappings and lists."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


PLACES = list(places(VALID))


@st.composite
def mutated_recipes(draw):
    """A valid recipe with one to three entries replaced, removed, renamed or added."""
    content = copy.deepcopy(VALID)
    for path in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        holder = content
        try:
            for key in path[:-1]:
                holder = holder[key]
            what = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
            if what == "remove":
                del holder[path[-1]]
            elif what == "rename":
                name = str(path[-1])
                holder[name[:-1] + draw(st.sampled_from(["", "x", "é", " ", "_"]))] = holder.pop(path[-1])
            elif what == "add":
                holder[draw(st.text(max_size=8))] = draw(JUNK)
            else:
                holder[path[-1]] = draw(JUNK)
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # an earlier change removed this place
    return content


@st.composite
def mutated_texts(draw):
    """The text of a valid recipe with a piece cut out and another put in."""
    text = yaml.safe_dump(VALID)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    return text[:start] + draw(st.text(max_size=8)) + text[end:]


def run(*arguments):
    """Return the exit code, what was printed, and what went to stderr."""
    printed, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["pfa-convert", *arguments]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as ended:
        return ended.code, printed.getvalue(), errors.getvalue()
    finally:
        sys.argv = before


def check(folder, *arguments):
    """The one rule that every command keeps."""
    before = sorted(path for path in Path(folder).rglob("*"))
    code, _, errors = run(*arguments)
    assert code in (0, 2), (code, errors)
    assert "Traceback" not in errors
    if code == 2:
        assert errors.startswith("pfa-convert: ") and errors.count("\n") == 1, errors
        assert len(errors) < 2000
        assert sorted(path for path in Path(folder).rglob("*")) == before, "something was written"
    return code, errors


@contextlib.contextmanager
def working_in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


MANY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "derandomize": True}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@settings(max_examples=800, **MANY)
@given(mutated_recipes())
def test_recipes_with_wrong_entries(content):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        code, _ = check(folder, "train", str(path), "--output", f"{folder}/run", "--device", "cpu")
        if code == 0:
            accepted_as_given(yaml.safe_load(path.read_text()), Path(folder) / "run")


@cache
def schema():
    """The schema of recipes, looked at once."""
    schema = json.loads(schema_file().read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def same(held, given):
    """Whether a value is what was given; an integer may have become a number with a point."""
    if isinstance(held, list):
        return len(held) == len(given) and all(map(same, held, given))
    return held == (float(given) if isinstance(held, float) else given)


def accepted_as_given(content, folder):
    """Fail unless the schema allows a recipe, and the run has kept every entry of it."""
    jsonschema.Draft202012Validator(schema()).validate(content)
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    for key, value in flat(content).items():
        if value not in (None, {}):  # nothing given: the default holds
            assert same(flat(kept)[key], value), (key, value)
    assert (folder / "result.json").exists() or content["train"]["epochs"] > 0


def test_the_valid_recipe_is_accepted_and_a_misspelt_key_is_not(tmp_path):
    path = tmp_path / "recipe.yaml"
    for number, (content, wanted) in enumerate([(VALID, 0), ({**VALID, "trian": {}}, 2)]):
        path.write_text(yaml.safe_dump(content))
        code, _ = check(tmp_path, "train", str(path), "--output", f"{tmp_path}/{number}", "--device", "cpu")
        assert code == wanted
    accepted_as_given(VALID, tmp_path / "0")


def test_pytorchs_own_frames_are_not_the_users(tmp_path):
    huge = f"model.num_classes={2**63}"
    code, errors = check(
        tmp_path, "train", "digits-mlp-pfa", "--set", huge, "--output", str(tmp_path / "run")
    )
    assert code == 2 and "verflow" in errors
    assert "frame #" not in errors and "raised from" not in errors


@settings(max_examples=400, **MANY)
@given(mutated_texts())
def test_recipes_with_damaged_text(text):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        check(folder, "train", str(path), "--output", f"{folder}/run", "--device", "cpu")


@settings(max_examples=300, **MANY)
@given(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}={}".format,
            st.sampled_from(
                [
                    "train.epochs",
                    "train.optimizer.lr",
                    "convert.options.expansion",
                    "data.batch_size",
                    "model.hidden",
                    "name",
                ]
            ),
            JUNK,
        ),
    )
)
def test_settings(setting):
    with TemporaryDirectory() as folder:
        arguments = ["--set", setting, "--set", "train.epochs=0", "--output", f"{folder}/run"]
        code, _ = check(folder, "train", "digits-mlp-pfa", *arguments, "--device", "cpu")
        if code == 0:
            key, _, text = setting.partition("=")
            kept = flat(yaml.safe_load((Path(folder) / "run" / "recipe.yaml").read_text()))
            assert key == "train.epochs" or key in kept or any(k.startswith(f"{key}.") for k in kept)
            value = yaml.safe_load(text)
            if key != "train.epochs" and isinstance(value, int) and not isinstance(value, bool):
                assert kept[key] == value


@settings(max_examples=300, **MANY)
@given(
    st.one_of(
        st.text(max_size=20), st.builds("{}={}".format, st.sampled_from(["*", "1", "re:.", "Linear"]), JUNK)
    ),
    st.sampled_from(["pfa", "fa", "dfa", "pfx", ""]),
    JUNK,
)
def test_overrides_rules_and_options(override, rule, expansion):
    with TemporaryDirectory() as folder:
        arguments = ["--rule", rule, "--override", override, f"--expansion={expansion}"]
        code, _ = check(folder, "paper/mlp", *arguments, "--output", f"{folder}/m.safetensors")
        if code == 0:
            settings = load(f"{folder}/m.safetensors").conversion.settings
            assert settings["rule"] == rule in ("pfa", "fa", "dfa")
            assert settings["options"].get("expansion", 10) == float(expansion)
            assert len(settings["overrides"]) == 1


@settings(max_examples=300, **MANY)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=10),
            st.sampled_from(
                [
                    "rules",
                    "models",
                    "recipes",
                    "inspect",
                    "report",
                    "paper/mlp",
                    "--rule",
                    "pfa",
                    "--json",
                    "--jobs",
                    "-1",
                    "--only",
                    "reproduce",
                    "--seeds",
                    "0-",
                    "9-1",
                    "rule=",
                    "--rules",
                    "timm/",
                    "torchvision/nope",
                    "os:getcwd",
                    ":",
                    "a.b:c",
                    "--help",
                ]
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_arguments(arguments):
    with TemporaryDirectory() as folder, working_in(folder):
        code, printed, errors = run(*(argument.replace("\0", "") for argument in arguments))
        assert code in (0, 2), (code, errors)
        assert "Traceback" not in errors
        # Whatever ends well has said something, and whatever is refused has said why.
        assert printed.strip() if code == 0 else errors.strip()
        assert not list(Path(folder).iterdir())
