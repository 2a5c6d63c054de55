"""The command line: what it refuses rather than leaves out."""

import contextlib
import io
import sys
from unittest import mock

import pytest
import torch

from pfa_convert import UserError, load_recipe
from pfa_convert.cli import main
from pfa_convert.training.setup import make_model


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


RECURRENT = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(9, 7, batch_first=True), torch.nn.Linear(7, 3)
    def forward(self, images):
        return self.head(self.lstm(images.flatten(2)[..., :9])[0][:, -1])
"""


def test_unrolled_layers_are_sites_from_the_command_line_and_by_recipe(tmp_path, monkeypatch):
    (tmp_path / "recurrent_net.py").write_text(RECURRENT)
    monkeypatch.chdir(tmp_path)
    assert run("recurrent_net:Net", "--strict")[0] == 2
    code, output = run("recurrent_net:Net", "--unroll", "--strict")
    assert code == 0 and "3 sites converted" in output and "lstm" in output
    assert "unchanged to the last bit" in output or "unchanged but for rounding" in output
    recipe = tmp_path / "unrolled.yaml"
    recipe.write_text(
        "model: {name: recurrent_net:Net}\nconvert: {rule: fa, unroll: true, strict: true}\n"
        "data: {dataset: digits}\ntrain: {epochs: 1}\n"
    )
    code, output = run("recurrent_net:Net", "--recipe", str(recipe))
    assert code == 0 and "3 sites converted (3 fa)" in output
    loaded = load_recipe(recipe)
    assert len(make_model(loaded, 0, torch.device("cpu")).conversion.sites) == 3
    with pytest.raises(UserError, match="strict: "):
        make_model(load_recipe(recipe, ["convert.unroll=false"]), 0, torch.device("cpu"))


@pytest.mark.parametrize("option", [("--override", "fc=bp"), ("--rule", "fa"), ("--strict",), ("--unroll",)])
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
