"""What answers at once: nothing that needs no model imports PyTorch, or a library of models."""

import json
import os
import subprocess
import sys
from types import ModuleType

import pytest

import pfa_convert
from pfa_convert.models.cached_names import cached_names
from pfa_convert.rule_facts import facts_of, rule_facts
from pfa_convert.rules import RULES

HEAVY = {"torch", "torchvision", "timm"}

RUN = """
import atexit, sys
atexit.register(lambda: print("\\nIMPORTED", *sorted({"torch", "torchvision", "timm"} & set(sys.modules))))
from pfa_convert.cli import main
sys.argv = ["pfa-convert", *sys.argv[1:]]
main()
"""


def imported_by(script, *arguments, **environment):
    """Return the heavy packages that a script has imported at its end, what it printed, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    printed, _, imported = done.stdout.rpartition("IMPORTED")
    return set(imported.split()), printed + done.stderr, done.returncode


@pytest.fixture(scope="module")
def full_cache(tmp_path_factory):
    """A user's cache with the names of the models in it."""
    folder = tmp_path_factory.mktemp("cache")
    imported, _, code = imported_by(RUN, "models", "resnet50", XDG_CACHE_HOME=str(folder))
    assert code == 0 and imported == HEAVY
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["rules"], 0),
        (["rules", "pfa"], 0),
        (["rules", "pfx"], 2),
        (["recipes"], 0),
        (["--no-such-option"], 2),
    ],
)
def test_light_commands_import_no_pytorch(arguments, code, tmp_path):
    imported, printed, ended = imported_by(RUN, *arguments, XDG_CACHE_HOME=str(tmp_path))
    assert imported == set() and ended == code and printed.strip()


@pytest.mark.parametrize(
    "typed", ["tr", "train mnist-mlp-pf", "rules pf", "reproduce cifar", "convert resnet5", "train --re"]
)
def test_one_press_of_tab_imports_no_pytorch(typed, full_cache):
    shell = {"COMP_WORDS": f"pfa-convert {typed}", "COMP_CWORD": str(len(typed.split()))}
    imported, printed, _ = imported_by(
        RUN, XDG_CACHE_HOME=full_cache, _PFA_CONVERT_COMPLETE="bash_complete", **shell
    )
    assert imported == set() and f"plain,{typed.split()[-1]}" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet5o"], "or 'resnet50'"),
        (["models", "resnet50"], "torchvision/resnet50"),
        (["models", "zzzz"], "no model matches"),
        (["trian", "digits-mlp-pfa"], "unknown command or model 'trian'; did you mean 'train'?"),
    ],
)
def test_names_of_models_are_known_without_their_libraries(arguments, words, full_cache):
    imported, printed, _ = imported_by(RUN, *arguments, XDG_CACHE_HOME=full_cache)
    assert imported == set() and words in printed


def test_a_damaged_or_unwritable_cache_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (first,) = (cached_names("timm", lambda: ["a"]),)
    (kept,) = (tmp_path / "pfa-convert").iterdir()
    assert first == ["a"] == json.loads(kept.read_text())
    assert cached_names("timm", lambda: ["never asked"]) == ["a"]
    for damage in ("", "[", "{}", "[1]", "[]"):
        kept.write_text(damage)
        assert cached_names("timm", lambda: ["b"]) == ["b"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file, so that no folder can be made there
    assert cached_names("timm", lambda: ["c"]) == ["c"]


def test_models_that_a_script_has_added_are_found():
    import timm  # noqa: F401

    assert cached_names("timm", lambda: ["registered by hand"]) == ["registered by hand"]


def test_the_package_imports_nothing_until_it_is_used():
    seen = "print('IMPORTED', *({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    assert imported_by(f"import sys, pfa_convert\n{seen}") == (set(), "", 0)


def test_the_work_itself_imports_no_library_of_models():
    script = (
        "import sys\nfrom pfa_convert import convert, couple, alignment, load_recipe, train, save, load\n"
        "from torch import nn\nconvert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 'fa')\n"
        "print('IMPORTED', *({'torchvision', 'timm'} & set(sys.modules)))"
    )
    assert imported_by(script) == (set(), "", 0)


def test_public_names_are_never_the_modules_of_the_same_name():
    script = (
        "import pfa_convert.convert, pfa_convert.alignment, importlib\n"
        "importlib.import_module('pfa_convert.convert')\n"
        "from pfa_convert import alignment, convert\n"
        "assert callable(convert) and callable(alignment) and callable(pfa_convert.convert)\n"
        "from pfa_convert.convert import convert as same\n"
        "assert same is convert is pfa_convert.convert\nprint('IMPORTED')"
    )
    assert imported_by(script)[1:] == ("", 0)
    for name in pfa_convert.__all__:
        assert not isinstance(getattr(pfa_convert, name), ModuleType) and name in dir(pfa_convert)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pfa_convert.nothing


def test_what_is_read_of_the_rules_is_what_they_say():
    assert rule_facts() == {name: facts_of(RULES[name]) for name in RULES}


def test_registries_and_build_are_public_and_import_no_library_of_models():
    script = (
        "import sys, pfa_convert\n"
        "from pfa_convert import DATASETS, LAYERS, RULES, Pathway, Rule, build\n"
        "assert 'digits' in DATASETS and 'pfa' in RULES and build('paper/mlp', 10)\n"
        "print('\\nIMPORTED', *sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    imported, printed, code = imported_by(script)
    assert code == 0, printed
    assert imported == {"torch"}
