"""Every rule on every layer, against the formula written out."""

import math

import pytest
import torch
from harness import EXACT, cases, gradients, literal, problem, relative_error
from torch import nn

from pfa_convert import UserError, alignment, convert
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules import RULES, Rule, make_rule

CASES = {case.name: case for case in cases()}


def converted_layer(case, rule, **options):
    model = nn.Sequential(case.layer).double()
    return convert(model, rule, options=options)


def sigma(weight):
    receptive_field = math.prod(weight.shape[2:])
    return math.sqrt(2 / (weight.shape[0] * receptive_field + weight.shape[1] * receptive_field))


def dense_product(layer, B, R):
    """`B R` by loops over groups, output channels and middle neurons."""
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    W, groups = layer.weight, getattr(layer, "groups", 1)
    F = torch.zeros_like(W)
    outputs, middle = B.shape[1:]
    inputs = W.shape[0] // groups if transposed else W.shape[1]
    for g in range(groups):
        for o in range(outputs):
            for m in range(middle):
                if transposed:
                    F[g * inputs : (g + 1) * inputs, o] += B[g, o, m] * R[g * inputs : (g + 1) * inputs, m]
                else:
                    F[g * outputs + o] += B[g, o, m] * R[g * middle + m]
    return F.detach()


def expected_F(rule, layer, feedback):
    W = layer.weight.detach()
    if rule == "bp":
        return W
    if rule == "fa":
        return feedback.F0
    if rule == "usf":
        return sigma(W) * W.sign()
    if rule == "frsf":
        return feedback.magnitude * W.sign()
    if rule == "kp":
        return feedback.F.detach()
    return dense_product(layer, feedback.B, feedback.R)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "frsf", "kp", "pfa", "pfa-o"])
def test_gradients_equal_the_literal_formula(rule, name):
    case = CASES[name]
    options = {"strategy": "explicit"} if rule == "bp" else {"expansion": 3} if rule == "pfa" else {}
    model = converted_layer(case, rule, **options)
    x, delta = problem(case)
    F = expected_F(rule, model[0], model[0].feedback_of_weight)
    dx, parameters = literal(case.layer, F, x, delta)
    got_dx, got = gradients(model, x, delta)
    assert relative_error(got_dx, dx) <= EXACT
    for key, gradient in parameters.items():
        assert relative_error(got[f"0.{key}"], gradient) <= EXACT


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_explicit_and_fused_agree_and_R_learns_with_B_transposed(name, density):
    case = CASES[name]
    x, delta = problem(case)
    results = {}
    for strategy in ("explicit", "fused"):
        model = converted_layer(case, "pfa", expansion=3, feedback_density=density, strategy=strategy)
        results[strategy] = gradients(model, x, delta)
    (dx, explicit), (fused_dx, fused) = results["explicit"], results["fused"]
    assert relative_error(fused_dx, dx) <= EXACT
    for key, gradient in explicit.items():
        assert relative_error(fused[key], gradient) <= EXACT
    # dL/dR = mask o (B^T dL/dW): adjoint of R -> B R, so <dR, R'> = <dW, B R'> for any masked R'.
    feedback = model[0].feedback_of_weight
    probe = torch.randn_like(feedback.R) * (feedback.mask if density < 1 else 1)
    left = (fused["0.feedback_of_weight.R"] * probe).sum()
    right = (fused["0.weight"] * dense_product(model[0], feedback.B, probe)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["linear", "conv2d groups", "transposed 2d groups"])
def test_brsf_draws_anew_at_each_step(name):
    case = CASES[name]
    model = converted_layer(case, "brsf")
    x, delta = problem(case)
    torch.manual_seed(5)
    first, _ = gradients(model, x, delta)
    second, _ = gradients(model, x, delta)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    W = model[0].weight.detach()
    bound = math.sqrt(3) * sigma(W)
    F = torch.empty_like(W).uniform_(-bound, bound).abs() * W.sign()
    assert relative_error(first, literal(case.layer, F, x, delta)[0]) <= EXACT


@pytest.mark.parametrize("rule", ["fa", "usf", "kp", "pfa", "pfa-o"])
def test_missing_connections_stay_missing_while_training(rule):
    torch.manual_seed(0)
    model = convert(
        nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), rule, options={"feedback_density": 0.3}
    )
    feedback = model[2].feedback_of_weight
    plastic = {"kp": "F", "pfa": "R", "pfa-o": "R"}.get(rule)
    before = feedback.feedback_weight(model[2].weight) if plastic is None else getattr(feedback, plastic)
    missing = before.detach() == 0
    assert 0.5 < missing.double().mean() < 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    after = feedback.feedback_weight(model[2].weight) if plastic is None else getattr(feedback, plastic)
    assert (after.detach()[missing] == 0).all()


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_B_has_the_papers_statistics(density):
    model = convert(nn.Linear(10, 60), "pfa", options={"expansion": 40, "feedback_density": density})
    B = model.feedback_of_weight.B[0].double()
    assert B.shape == (60, 2400)
    # Variance of an existing entry 1/(density N_mid); E[B B^T] = I, off-diagonals of order 1/sqrt(N_mid).
    assert B[B != 0].var().item() == pytest.approx(1 / (density * 2400), rel=0.02)
    assert (B @ B.t() - torch.eye(60, dtype=B.dtype)).abs().max() < 0.2
    # Xavier's bound with the paper's gain sqrt((1 + 1/expansion) / 2 / density).
    gain = math.sqrt((1 + 1 / 40) / 2 / density)
    bound = gain * math.sqrt(6 / (60 + 2400))
    assert B.abs().max().item() == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("expansion", [1, 10, 100])
def test_path_angle_is_90_degrees_at_first_and_atan_in_the_end(expansion):
    model = convert(nn.Linear(300, 200), "pfa", options={"expansion": expansion})
    assert alignment(model)["weight"]["angle_deg"] == pytest.approx(90, abs=1.5)
    feedback = model.feedback_of_weight
    with torch.no_grad():
        feedback.R.copy_(feedback.B[0].t() @ model.weight)
    expected = math.degrees(math.atan(1 / math.sqrt(expansion)))
    assert alignment(model)["weight"]["angle_deg"] == pytest.approx(expected, abs=1)


def test_pfa_o_angle_goes_to_zero():
    model = convert(nn.Conv2d(8, 12, 3, groups=2), "pfa-o")
    feedback = model.feedback_of_weight
    with torch.no_grad():
        product = torch.einsum("gom,goi->gmi", feedback.B, model.weight.view(2, 6, -1))
        feedback.R.copy_(product.reshape(feedback.R.shape))
    assert alignment(model)["weight"]["angle_deg"] < 1e-3


def test_a_layers_draw_depends_on_seed_and_name_alone():
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    one = convert(plain, "fa")
    other = convert(plain, "fa", overrides=[{"match": "0", "rule": "usf"}])
    assert torch.equal(one[1].feedback_of_weight.F0, other[1].feedback_of_weight.F0)
    assert not torch.equal(one[0].feedback_of_weight.F0, one[1].feedback_of_weight.F0)
    assert not torch.equal(
        one[1].feedback_of_weight.F0, convert(plain, "fa", seed=1)[1].feedback_of_weight.F0
    )
    twin = convert(plain.double(), "fa")
    assert torch.equal(twin[1].feedback_of_weight.F0.float(), one[1].feedback_of_weight.F0)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("pfaa", {}, "did you mean 'pfa'"),
        ("pfa", {"expansoin": 3}, "did you mean 'expansion'"),
        ("pfa", {"expansion": -1}, "greater than 0"),
        ("fa", {"feedback_density": 2}, "less than or equal to 1"),
        ("pfa", {"strategy": "fuse"}, "did you mean 'fused'"),
    ],
)
def test_wrong_options_name_the_nearest_choice(rule, options, message):
    with pytest.raises(UserError, match=message):
        make_rule(rule, options)


def test_a_new_rule_is_one_class_that_registers_itself():
    class HalfPathway(Pathway):
        def feedback_weight(self, W, *state):
            return W / 2

    class Half(Rule):
        name, title, formula, source = "half", "half of W", "F = W/2", "a test"

        def pathway(self, layout):
            return HalfPathway(layout)

    RULES.register("half")(Half)
    try:
        case = CASES["conv2d"]
        model = converted_layer(case, "half")
        x, delta = problem(case)
        plain_dx, _ = gradients(case.layer, x, delta)
        assert relative_error(gradients(model, x, delta)[0], plain_dx / 2) <= EXACT
    finally:
        del RULES._entries["half"]
