"""Every rule on every layer, against the formula written out."""

import copy
import math

import pytest
import torch
from harness import EXACT, cases, gradients, literal, problem, relative_error
from torch import nn

from pfa_convert import UserError, alignment, convert
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules import RULES, Rule, make_rule

CASES = {case.name: case for case in cases()}


PLASTIC = ("kp", "pfa", "pfa-o")


def converted_layer(case, rule, **options):
    if rule in PLASTIC:
        options.setdefault("strategy", "fused")
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
    if hasattr(feedback, "K"):
        G = getattr(feedback, "G", None)
        return W + feedback.K if G is None else dense_product(layer, G, W + feedback.K)
    if rule == "kp":
        return feedback.F.detach()
    return dense_product(layer, feedback.B, feedback.R)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("rule", "strategy"),
    [
        ("bp", "explicit"),
        *((rule, "fixed") for rule in ("fa", "usf", "frsf")),
        *((rule, strategy) for rule in PLASTIC for strategy in ("fused", "collapsed")),
    ],
)
def test_gradients_equal_the_literal_formula(rule, strategy, name):
    case = CASES[name]
    options = {"expansion": 3} if rule == "pfa" else {}
    model = converted_layer(case, rule, strategy=strategy, **options)
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


@pytest.mark.parametrize("name", CASES)
def test_brsf_draws_anew_at_each_step(name):
    case = CASES[name]
    model = converted_layer(case, "brsf")
    x, delta = problem(case)
    torch.manual_seed(5)
    first, parameters = gradients(model, x, delta)
    second, _ = gradients(model, x, delta)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    W = model[0].weight.detach()
    bound = math.sqrt(3) * sigma(W)
    F = torch.empty_like(W).uniform_(-bound, bound).abs() * W.sign()
    dx, plain = literal(case.layer, F, x, delta)
    assert relative_error(first, dx) <= EXACT
    assert all(relative_error(parameters[f"0.{key}"], plain[key]) <= EXACT for key in plain)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", ["fa", "usf", "kp", "pfa", "pfa-o"])
def test_sparse_feedback_is_the_literal_formula_with_masks(rule, name):
    case = CASES[name]
    options = {"expansion": 3} if rule == "pfa" else {}
    model = converted_layer(case, rule, feedback_density=0.5, **options)
    feedback = model[0].feedback_of_weight
    x, delta = problem(case)
    W = model[0].weight.detach()
    F = expected_F(rule, model[0], feedback)
    if rule == "usf":
        F = F * feedback.mask
    got_dx, got = gradients(model, x, delta)
    dx, plain = literal(case.layer, F, x, delta)
    assert relative_error(got_dx, dx) <= EXACT
    assert relative_error(got["0.weight"], plain["weight"]) <= EXACT
    if rule in ("fa", "kp", "usf"):  # about half of the connections are there
        assert abs((F != 0).double().mean() - 0.5) < 4 * math.sqrt(0.25 / W.numel())
    if rule == "kp":
        assert relative_error(got["0.feedback_of_weight.F"], plain["weight"] * feedback.mask) <= EXACT
        assert ((feedback.F != 0) <= (feedback.mask != 0)).all()
    if rule in ("pfa", "pfa-o"):
        assert ((feedback.R != 0) <= (feedback.mask != 0)).all()
        assert (got["0.feedback_of_weight.R"][feedback.mask == 0] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_kp_learns_with_the_weights_own_gradient(name):
    case = CASES[name]
    _, got = gradients(converted_layer(case, "kp"), *problem(case))
    assert torch.equal(got["0.feedback_of_weight.F"], got["0.weight"])


@pytest.mark.parametrize("rule", ["pfa", "pfa-o"])
@pytest.mark.parametrize("name", [n for n in CASES if "transposed" not in n])
def test_B_of_a_grouped_convolution_is_one_block_diagonal_matrix(name, rule):
    layer = converted_layer(CASES[name], rule)[0]
    feedback, groups = layer.feedback_of_weight, getattr(layer, "groups", 1)
    B = torch.block_diag(*feedback.B)
    expansion = 10 if rule == "pfa" else 1
    assert B.shape == (layer.weight.shape[0], expansion * layer.weight.shape[0])
    assert len(feedback.B) == groups and feedback.R.shape == (B.shape[1], *layer.weight.shape[1:])
    F = torch.einsum("om,m...->o...", B, feedback.R)
    assert relative_error(feedback.feedback_weight(layer.weight), F) <= EXACT


@pytest.mark.parametrize("name", [n for n in CASES if "transposed" not in n])
def test_R_learns_from_what_its_own_neurons_see(name):
    """`dL/dR` is the weight gradient of a layer with N_mid outputs that receives the error `B^T delta`."""
    case = CASES[name]
    model = converted_layer(case, "pfa", expansion=2)
    feedback = model[0].feedback_of_weight
    x, delta = problem(case)
    middle = copy.deepcopy(case.layer).double()
    middle.weight, middle.bias = nn.Parameter(feedback.R.detach().clone()), None
    B = torch.block_diag(*feedback.B)
    channels = -1 if isinstance(middle, nn.Linear) else 1 if x.dim() == middle.weight.dim() else 0
    below = torch.tensordot(delta, B, dims=([channels], [0])).movedim(-1, channels)
    if not isinstance(middle, nn.Linear):
        middle.out_channels = B.shape[1]
    dx, expected = gradients(middle, x, below)
    got_dx, got = gradients(model, x, delta)
    assert relative_error(got_dx, dx) <= EXACT
    assert relative_error(got["0.feedback_of_weight.R"], expected["weight"]) <= EXACT


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d groups", "transposed 2d groups", "conv3d"])
def test_random_weights_are_drawn_as_pytorchs_xavier_does(name):
    torch.manual_seed(0)
    layer = CASES[name].layer
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    bound = math.sqrt(6 / (fan_in + fan_out))
    for rule, state in (("fa", "F0"), ("kp", "F"), ("frsf", "magnitude")):
        drawn = getattr(converted_layer(CASES[name], rule)[0].feedback_of_weight, state)
        assert 0.8 * bound < drawn.abs().max() <= bound * (1 + 1e-6)
        assert drawn.abs().mean().item() == pytest.approx(bound / 2, rel=6 / math.sqrt(12 * drawn.numel()))
    R = converted_layer(CASES[name], "pfa", law="uniform")[0].feedback_of_weight.R
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(R)
    assert R.abs().max().item() == pytest.approx(math.sqrt(6 / (fan_in + fan_out)), rel=0.05)
    usf = converted_layer(CASES[name], "usf")[0]
    F = usf.feedback_of_weight.feedback_weight(usf.weight)
    assert relative_error(F, sigma(layer.weight) * layer.weight.sign()) < 1e-6
    assert sigma(layer.weight) == pytest.approx(bound / math.sqrt(3))


@pytest.mark.parametrize("name", ["linear", "conv2d groups", "conv2d depthwise", "transposed 2d groups"])
def test_B_of_pfa_o_is_orthogonal_in_each_group(name):
    B = converted_layer(CASES[name], "pfa-o")[0].feedback_of_weight.B
    identity = torch.eye(B.shape[1], dtype=B.dtype).expand_as(B)
    assert (B @ B.transpose(1, 2) - identity).abs().max() < 1e-6  # drawn in float32


@pytest.mark.parametrize("rule", ["kp", "pfa-o", "pfa"])
def test_plastic_feedback_forgets_where_it_began(rule):
    plain = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    model = convert(plain, rule, options={"strategy": "fused"}).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.4)
    x = torch.randn(16, 6, dtype=torch.float64)
    for _ in range(500):
        optimizer.zero_grad()
        (model(x) - 9 * x[:, :3]).square().mean().backward()
        optimizer.step()
    W, feedback = model[1].weight, model[1].feedback_of_weight
    plastic, followed = (feedback.F, W) if rule == "kp" else (feedback.R, feedback.B[0].t() @ W)
    assert W.norm() > 1 and relative_error(plastic, followed) < 1e-6


@pytest.mark.parametrize("rule", ["fa", "usf", "kp", "pfa", "pfa-o"])
def test_missing_connections_stay_missing_while_training(rule):
    torch.manual_seed(0)
    options = {"feedback_density": 0.3, **({"strategy": "fused"} if rule in PLASTIC else {})}
    model = convert(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), rule, options=options)
    feedback = model[2].feedback_of_weight
    plastic = {"kp": "F", "pfa": "R", "pfa-o": "R"}.get(rule)
    before = feedback.feedback_weight(model[2].weight) if plastic is None else getattr(feedback, plastic)
    missing = before.detach() == 0
    assert 0.5 < missing.double().mean() < 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    begun = model[2].weight.clone()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    after = feedback.feedback_weight(model[2].weight) if plastic is None else getattr(feedback, plastic)
    assert (after.detach()[missing] == 0).all() and not torch.equal(model[2].weight, begun)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_B_has_the_papers_statistics(density):
    options = {"expansion": 40, "feedback_density": density, "strategy": "fused", "law": "uniform"}
    model = convert(nn.Linear(10, 60), "pfa", options=options)
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
    model = convert(nn.Linear(300, 200), "pfa", options={"expansion": expansion, "strategy": "fused"})
    assert alignment(model)["weight"]["angle_deg"] == pytest.approx(90, abs=1.5)
    feedback = model.feedback_of_weight
    with torch.no_grad():
        feedback.R.copy_(feedback.B[0].t() @ model.weight)
    expected = math.degrees(math.atan(1 / math.sqrt(expansion)))
    assert alignment(model)["weight"]["angle_deg"] == pytest.approx(expected, abs=1)


def test_pfa_o_angle_goes_to_zero():
    model = convert(nn.Conv2d(8, 12, 3, groups=2), "pfa-o", options={"strategy": "fused"})
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
        ("pfa", {"expansion": "ten"}, "expansion"),
        ("pfa-o", {"expansion": 3}, "expansion"),
        ("brsf", {"feedback_density": 0.5}, "feedback_density"),
        ("PFA", {}, "unknown rule 'PFA'"),
    ],
)
def test_wrong_options_name_the_nearest_choice(rule, options, message):
    with pytest.raises(UserError, match=message):
        make_rule(rule, options)


def test_an_infinite_expansion_is_a_mistake():
    with pytest.raises(UserError, match="expansion"):
        convert(nn.Linear(2, 2), options={"expansion": float("inf")})


def test_converting_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    convert(nn.Sequential(copy.deepcopy(CASES["linear"].layer)), "pfa")
    assert torch.equal(torch.randn(4), expected)


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
