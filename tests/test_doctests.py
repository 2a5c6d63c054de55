"""The examples in docstrings: they run, and the public verbs have one."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pfa_convert

ROOT = Path(__file__).parents[1]
VERBS = ("alignment", "convert", "couple", "load_recipe", "revert", "strip_feedback", "verify")
MODULES = [
    found.name
    for found in pkgutil.walk_packages(pfa_convert.__path__, "pfa_convert.")
    if not found.ispkg
    if ">>>" in Path(found.module_finder.path, found.name.rpartition(".")[2] + ".py").read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("verb", VERBS)
def test_a_public_verb_has_an_example(verb):
    assert doctest.DocTestFinder().find(getattr(pfa_convert, verb), verb)[0].examples


def test_the_version_is_stated_once_and_cited_as_it_is():
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == pfa_convert.__version__
    assert f"version = {{{pfa_convert.__version__}}}" in (ROOT / "docs/citing.md").read_text()
    assert not re.search(r"^version *=", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
