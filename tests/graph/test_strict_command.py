"""The command line: what it refuses rather than leaves out."""

import contextlib
import io
import sys
from unittest import mock

import pytest

from pfa_convert.cli import main


def run(*arguments):
    """Return the exit code, and all that is printed."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch.object(sys, "argv", ["pfa-convert", *arguments]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return end.value.code or 0, " ".join(printed.getvalue().split())


def test_strict_refuses_a_model_in_which_a_weight_gets_no_rule():
    code, output = run("timm/sequencer2d_s", "--strict")
    assert code == 2 and "strict: 144 weights get no rule" in output and "LSTM" in output
    assert run("paper/resnet20", "--rule", "fa", "--strict")[0] == 0


@pytest.mark.parametrize("option", [("--override", "fc=bp"), ("--rule", "fa"), ("--strict",)])
def test_options_of_a_conversion_are_not_ignored_for_a_file_that_holds_one(option, tmp_path):
    path = str(tmp_path / "model.safetensors")
    assert run("paper/mlp", "--rule", "fa", "--output", path)[0] == 0
    code, output = run(path, *option)
    assert code == 2 and option[0] in output and "holds its own conversion" in output
    assert run(path)[0] == 0


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "timm/hf_hub:timm/resnet18.a1_in1k"])
def test_a_name_that_is_a_download_says_what_to_do_instead(name):
    code, output = run(name)
    assert code == 2 and "nothing is downloaded" in output and "load_state_dict" in output
