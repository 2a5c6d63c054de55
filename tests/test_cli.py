"""The command line as a user runs it: its output, its exit code; a process of its own where that matters."""

import json
import subprocess
import sys

import pytest
import torch
from click.shell_completion import BashComplete
from training.runs import call

from pfa_convert import UserError, load
from pfa_convert.cli import cli


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "pfa_convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_converts_resnet50_and_reports_as_json():
    called = call("resnet50", "--rule", "pfa", "--expansion", 1, "--json")
    assert called.code == 0, called.errors
    report = json.loads(called.printed)
    assert report["model"] == "torchvision/resnet50" and report["counts"] == {"pfa": 54}
    assert [site["kind"] for site in report["sites"]].count("Conv2d") == 53
    assert report["skipped"] == [] and report["forward_max_difference"] == 0.0


def test_prints_a_table_and_writes_a_file_that_loads(tmp_path):
    path = tmp_path / "a model.safetensors"
    called = call("paper/resnet20", "--rule", "fa", "--override", "fc=bp", "--output", path)
    assert called.code == 0, called.errors
    assert "20 sites converted (19 fa, 1 bp), 0 skipped" in called.printed
    assert "unchanged to the last bit" in called.printed
    again = call(path)
    assert "20 sites converted (19 fa, 1 bp), 0 skipped" in again.printed and again.code == 0
    model = load(path)
    assert model.conversion.counts() == {"fa": 19, "bp": 1}


def test_trains_the_bundled_digits(tmp_path):
    result = run("train", "digits-mlp-pfa", "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["final_top1"] >= 95
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 31  # with epoch 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet5o"], "did you mean"),
        (["resnet18", "--rule", "pfaa"], "did you mean 'pfa'"),
        (["resnet18", "--override", "layer9.*=bp"], "matches no site"),
        (["resnet18", "--option", "expansoin=3"], "did you mean 'expansion'"),
        (["resnet18", "--recipe", "nosuch"], "unknown recipe 'nosuch'"),
        (["resnet18", "--expansion", "many"], "not a valid float"),
        (["resnet18", "--no-such-flag"], "No such option"),
        (["paper/mlp", "--output", "no/such/folder/x.safetensors"], "does not exist"),
        (["nosuchmodule:factory"], "cannot import"),
        (["train", "digits-mlp-pfaa"], "did you mean 'digits-mlp-pfa'"),
        (
            ["train", "digits-mlp-pfa", "--set", "train.epoch=3"],
            "unknown key 'train.epoch'; did you mean 'epochs'",
        ),
        (["train", "mnist-mlp-pfa", "--data", "nowhere"], "nowhere/MNIST/raw is missing"),
        (["rules", "pfx"], "did you mean"),
        (["models", "zzzzzz"], "no model matches"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    called = call(*arguments)
    assert called.code == 2
    assert words in called.errors and "Traceback" not in called.errors
    assert len(called.errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_a_process_so_too(tmp_path):
    result = run("resnet18", "--rule", "pfaa", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("pfa-convert: unknown rule 'pfaa'; did you mean 'pfa'")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0 not a header at all")
    called = call(path)
    assert called.code == 2 and "is not a readable safetensors file" in called.errors
    assert len(called.errors.splitlines()) == 1


def test_a_factory_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef net(): return torch.nn.Conv2d(3, 4, 3)\n")
    result = run("mine:net", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["counts"] == {"pfa": 1}


@pytest.mark.parametrize(
    "command", [["rules"], ["rules", "pfa"], ["recipes"], ["models", "resnet50"], ["--help"]]
)
def test_lists_and_explains(command):
    called = call(*command)
    assert called.code == 0 and called.printed.strip()


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save(Bomb(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        load(tmp_path / "model.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("conv", {"convert"}),
        ("train mnist-mlp-pf", {"mnist-mlp-pfa", "mnist-mlp-pfa-o"}),
        ("rules pfa", {"pfa", "pfa-o"}),
        ("convert resnet5", {"resnet50", "resnet50c", "resnet50d", "resnet50s", "resnet50t", "resnet51q"}),
        ("reproduce cifar10", {"cifar10", "cifar10-resnet20", "cifar10-resnet20-short"}),
    ],
)
def test_the_shell_completes_names(typed, offered):
    *words, begun = typed.split()
    found = BashComplete(cli, {}, "pfa-convert", "_").get_completions(words, begun)
    assert offered <= {item.value for item in found}
    assert all(item.value.startswith(begun) for item in found)
