"""Thirty models, chosen for variety, proved right; and what the proof says of a conversion that is not."""

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pfa_convert import convert, verify
from pfa_convert.commands.models import models_command
from pfa_convert.comparison import undisturbed
from pfa_convert.models import build
from pfa_convert.zoo import coverage, proof
from pfa_convert.zoo.coverage import check
from pfa_convert.zoo.errors import ErrorsBelow
from pfa_convert.zoo.proof import Proof, prove
from pfa_convert.zoo.sweep import read_table, sweep

VARIETY = [
    "paper/resnet20",
    "torchvision/googlenet",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v3_small",
    "torchvision/raft_small",
    "torchvision/regnet_y_400mf",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "timm/botnet26t_256",
    "timm/convnext_atto",
    "timm/crossvit_9_240",
    "timm/edgenext_xx_small",
    "timm/efficientvit_b0",
    "timm/efficientvit_m0",
    "timm/eva02_tiny_patch14_224",
    "timm/fastvit_t8",
    "timm/gcresnext26ts",
    "timm/levit_128s",
    "timm/mobileone_s0",
    "timm/mobilevit_xxs",
    "timm/pit_ti_224",
    "timm/poolformer_s12",
    "timm/resmlp_12_224",
    "timm/test_coatnet",
    "timm/test_maxvit",
    "timm/test_nfnet",
    "timm/test_vit_relpos",
    "timm/tf_efficientnet_cc_b0_4e",
    "timm/xcit_nano_12_p16_224",
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", VARIETY)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_conversion_is_proved(name):
    line = prove(name)
    assert line.status == "proved", line
    assert line.sites == line.applied == line.changed > 5


def test_a_site_that_keeps_backpropagation_is_found(monkeypatch):
    def skipping_one(model, rule, **arguments):
        overrides = [{"match": "layer2.0.conv1", "rule": "bp"}] if rule == "fa" else []
        return convert(model, rule, overrides=overrides, **arguments)

    monkeypatch.setattr(proof, "convert", skipping_one)
    line = prove("paper/resnet20")
    assert line.status == "failed" and "fa leaves the error below layer2.0.conv1.weight" in line.reasons
    assert line.changed == line.sites - 1


def test_a_feedback_weight_that_equals_the_forward_weight_is_found(monkeypatch):
    def with_a_forward_weight(model, rule, **arguments):
        converted = convert(model, rule, **arguments)
        if rule == "fa":
            layer = converted.layer3[1].conv2
            with torch.no_grad():
                layer.feedback_of_weight.F0.copy_(layer.weight)
        return converted

    monkeypatch.setattr(proof, "convert", with_a_forward_weight)
    line = prove("paper/resnet20")
    assert "fa leaves the error below layer3.1.conv2.weight, 1 in all" in line.reasons


def test_another_forward_is_found(monkeypatch):
    def with_another_weight(model, rule, **arguments):
        converted = convert(model, rule, **arguments)
        with torch.no_grad():
            converted.fc.weight[0, 0] += 1e-6
        return converted

    monkeypatch.setattr(proof, "convert", with_another_weight)
    reasons = prove("paper/resnet20").reasons
    for claim in (
        "the forward differs",
        "revert does not give back the state",
        "bp's gradients differ",
        "F = W",
    ):
        assert claim in reasons


def test_an_exception_is_a_line_of_the_table():
    line = prove("torchvision/no_such_model")
    assert line.status == "failed" and line.reasons.startswith("UserError: unknown model")


def test_a_model_that_is_too_large_is_left_out():
    assert prove("torchvision/resnet18", largest=1e6) is None


def test_a_table_is_continued_and_not_begun_again(tmp_path):
    table = tmp_path / "proof.csv"
    names = ["a", "b", "c"]
    assert {line.model for line in sweep(names[:2], a_line, Proof, table, 1)} == {"a", "b"}
    lines = list(sweep(names, refuse_all_but_c, Proof, table, 1))
    assert [line.model for line in lines] == names
    assert {line.model for line in read_table(table, Proof)} == set(names)
    assert lines[0].sites == 1 and lines[2].sites == 7


def a_line(name):
    return Proof(name, "proved", sites=len(name))


def refuse_all_but_c(name):
    assert name == "c"
    return Proof(name, "proved", sites=7)


class DynamicKernel(nn.Module):
    """A convolution whose kernel is an activation: no learned weight."""

    def __init__(self):
        super().__init__()
        self.make = nn.Linear(4, 4 * 4)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.make(x).mean(0).view(4, 4))


def test_a_kernel_that_is_an_activation_is_no_weight():
    model = convert(DynamicKernel(), "fa")
    x = torch.randn(3, 4, requires_grad=True)
    account = verify(model, x)
    assert [(entry.name, entry.status) for entry in account.entries] == [("make.weight", "site")]
    with undisturbed(model, training=True):
        output = model(x)
        errors = ErrorsBelow([output], {model.make.weight})
        output.sum().backward()
    assert errors.applied == errors.changed == {model.make.weight}


def test_a_model_of_the_users_is_proved_with_inputs_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Hidden(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner, self.W = torch.nn.Linear(6, 5), torch.nn.Parameter(torch.randn(5, 3))\n"
        "    def forward(self, x, scale):\n"
        "        return self.inner(x) @ self.W * scale\n"
        "def example_inputs():\n"
        "    return torch.randn(4, 6), 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    line = prove("mine:Hidden")
    assert line.status == "proved" and line.sites == line.applied == line.changed == 2
    for what in ("--check", "--prove"):
        result = CliRunner().invoke(models_command, [what, "mine:Hidden"])
        assert result.exit_code == 0 and "sites            2" in result.output
    assert "has no 'Other'" in str(CliRunner().invoke(models_command, ["--prove", "mine:Other"]).exception)
    assert not list(tmp_path.glob("*.csv"))


def test_coverage_counts_every_parameter_by_what_ran():
    line = check("timm/test_vit")
    assert (line.status, line.share, line.device) == ("balanced", 100.0, "meta")
    model = convert(build("timm/test_vit"), "fa")
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert line.sites + line.no_linear_map == len(matrices) and line.no_linear_map == 2  # token and positions


def test_coverage_names_what_no_site_and_no_reason_accounts_for(monkeypatch):
    def with_a_hook(model, rule, **arguments):
        converted = convert(model, rule, **arguments)
        fc = converted.fc
        fc.register_forward_hook(lambda layer, inputs, output: output + inputs[0] @ layer.weight.t())
        return converted

    monkeypatch.setattr(coverage, "convert", with_a_hook)
    line = check("paper/resnet20")
    assert line.status == "unbalanced" and line.unaccounted == 1 and 99 < line.share < 100
    assert line.reasons.startswith("unaccounted: fc.weight: mm (mat2) applies it without feedback")
