"""What a plastic feedback weight receives under any optimizer, against the definition written out.

`R` receives `B^T` times the update of `W` and forgets at the rate at which `W` decays: a buffer `R` follows
`R <- f R + B^T (W_new - f W_old)` with the decay factor `f` of each optimizer's documentation, and `F = B R`.
"""

import copy
import warnings

import pytest
import timm.optim
import torch
from harness import relative_error
from torch import nn

from pfa_convert import convert, couple
from pfa_convert.errors import UserError
from pfa_convert.feedback.decay import decay_of, register_decay
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.rules import RULES
from pfa_convert.rules.base import PlasticRule

STEPS = 100


def mlp():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 6, bias=False))
    return plain.double()


def by_rate(group):
    return 1 - group["lr"] * group["weight_decay"]


def corrected(group):
    return 1 - group["lr"] ** 2 / group["max_lr_snapshot"] * group["weight_decay"]


OPTIMIZERS = {
    "AdamW": (lambda groups: torch.optim.AdamW(groups), by_rate),
    "AdamW, foreach": (lambda groups: torch.optim.AdamW(groups, foreach=True, amsgrad=True), by_rate),
    "AdamW, fused": (lambda groups: torch.optim.AdamW(groups, fused=True), by_rate),
    "Adam, decoupled": (lambda groups: torch.optim.Adam(groups, decoupled_weight_decay=True), by_rate),
    "NAdam, decoupled": (lambda groups: torch.optim.NAdam(groups, decoupled_weight_decay=True), by_rate),
    "RAdam, decoupled": (lambda groups: torch.optim.RAdam(groups, decoupled_weight_decay=True), by_rate),
    "Adafactor": (lambda groups: torch.optim.Adafactor(groups), by_rate),
    "Muon": (lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"), by_rate),
    "Lion": (lambda groups: timm.optim.Lion(groups), by_rate),
    "Lion, corrected": (lambda groups: timm.optim.Lion(groups, corrected_weight_decay=True), corrected),
    "Lamb, decoupled": (lambda groups: timm.optim.Lamb(groups, decoupled_decay=True), by_rate),
    "NAdamW": (lambda groups: timm.optim.NAdamW(groups), by_rate),
    "LaProp": (lambda groups: timm.optim.LaProp(groups), by_rate),
    "SGDW": (lambda groups: timm.optim.SGDW(groups, momentum=0.9), by_rate),
    "Adan": (
        lambda groups: timm.optim.Adan(groups),
        lambda group: 1 / (1 + group["lr"] * group["weight_decay"]),
    ),
    "Adam with L2": (lambda groups: torch.optim.Adam(groups), lambda group: 1.0),
    "RMSprop": (lambda groups: torch.optim.RMSprop(groups), lambda group: 1.0),
    "Lamb": (lambda groups: timm.optim.Lamb(groups), lambda group: 1.0),
}


def groups_of(model):
    return [
        {"params": [model[0].weight], "lr": 0.02, "weight_decay": 0.5},
        {"params": [model[2].weight], "lr": 0.01, "weight_decay": 0.2},
    ]


def schedule(optimizer, step):
    """Change what is scheduled in practice: learning rates by a staircase, weight decay after a while."""
    if step in (40, 70):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
    if step == 50:
        for group in optimizer.param_groups:
            group["weight_decay"] *= 0.1


def train_beside_literal(rule, make_optimizer, factor, clip=None, forgetting=None, collapse=True, **options):
    """Train a coupled model; return its feedback weights, and those of a literal `R` that followed."""
    literal = convert(mlp(), rule, options={**options, "strategy": "fused"})
    model = copy.deepcopy(literal)
    optimizer = make_optimizer(groups_of(model))
    plastic = [literal[i].feedback_of_weight for i in (0, 2)]
    P = [next(iter(feedback.parameters())).detach().clone() for feedback in plastic]
    for group, i in zip(optimizer.param_groups, (0, 2), strict=True):
        group["params"] = [model[i].weight, *model[i].feedback_of_weight.parameters()]
    handle = couple(model, optimizer, forgetting=forgetting, collapse=collapse)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        schedule(optimizer, step)
        x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :6].roll(1, 1)).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip)
        before = [model[i].weight.detach().clone() for i in (0, 2)]
        optimizer.step()
        for index, i in enumerate((0, 2)):
            f = factor(optimizer.param_groups[index])
            received = model[i].weight.detach() - f * before[index]
            if rule != "kp":
                received = plastic[index].B[0].t() @ received
            mask = plastic[index].state()[-1]
            P[index] = f * P[index] + (received if mask is None else mask * received)
            if forgetting is not None:
                target = model[i].weight.detach()
                target = target if rule == "kp" else plastic[index].B[0].t() @ target
                P[index] += ((target if mask is None else mask * target) - P[index]) / forgetting
    expected = [p if rule == "kp" else f.B[0] @ p for p, f in zip(P, plastic, strict=True)]
    ours = [model[i].feedback_of_weight.feedback_weight(model[i].weight) for i in (0, 2)]
    return ours, expected, model, handle


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pfa_receives_the_update_and_forgets_at_the_rate_of_decay(name):
    make, factor = OPTIMIZERS[name]
    ours, expected, model, handle = train_beside_literal("pfa", make, factor, expansion=3)
    for F, F_literal in zip(ours, expected, strict=True):
        assert relative_error(F, F_literal) < 1e-10
    s = [model[i].feedback_of_weight.forgetting[0].item() for i in (0, 2)]
    if name in ("Adam with L2", "RMSprop", "Lamb"):
        assert s == [1, 1]
        assert all("preconditioner" in reason for reason in handle.strategy.values())
    else:
        assert max(s) < 0.95 and s[0] != s[1]
        assert set(handle.strategy.values()) == {"collapsed"}


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("kp", {}),
        ("kp", {"feedback_density": 0.5}),
        ("pfa-o", {}),
        ("pfa", {"expansion": 3, "feedback_density": 0.5}),
        ("pfa", {"expansion": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_so_does_every_plastic_rule(rule, options, name):
    ours, expected, *_ = train_beside_literal(rule, *OPTIMIZERS[name], **options)
    for F, F_literal in zip(ours, expected, strict=True):
        assert relative_error(F, F_literal) < 1e-10


def test_clipping_by_value_is_part_of_the_update():
    sgd = lambda groups: torch.optim.SGD(groups)  # noqa: E731
    ours, expected, *_ = train_beside_literal("pfa", sgd, by_rate, clip=1e-3, expansion=3)
    for F, F_literal in zip(ours, expected, strict=True):
        assert relative_error(F, F_literal) < 1e-10


def test_two_optimizers_share_a_model():
    model = convert(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)).double(), "pfa")
    weights = [p for p in model.parameters() if p.dim() == 2]
    biases = [p for p in model.parameters() if p.dim() == 1]
    muon = torch.optim.Muon([weights[0]], lr=0.1, weight_decay=0.5)
    adamw = torch.optim.AdamW([weights[1], *biases], lr=0.01, weight_decay=0.1)
    couple(model, muon, adamw)
    for _ in range(3):
        model(torch.randn(4, 8).double()).square().mean().backward()
        muon.step()
        adamw.step()
    s = [layer.feedback_of_weight.forgetting[0].item() for layer in model]
    assert s == pytest.approx([0.95**3, 0.999**3], rel=1e-12)


def test_an_optimizer_that_is_not_known_says_so_and_can_be_registered():
    class Own(torch.optim.SGD):
        pass

    model = convert(mlp(), "pfa")
    handle = couple(model, Own(model.parameters(), lr=0.1, weight_decay=0.1))
    assert all("how Own decays is not known" in reason for reason in handle.strategy.values())
    register_decay(Own, by_rate)
    model = convert(mlp(), "pfa")
    optimizer = Own(model.parameters(), lr=0.1, weight_decay=0.1)
    assert set(couple(model, optimizer).strategy.values()) == {"collapsed"}
    model(torch.ones(2, 8).double()).sum().backward()
    optimizer.step()
    assert model[2].feedback_of_weight.forgetting[0].item() == pytest.approx(0.99)


@pytest.mark.parametrize("name", dir(timm.optim) + dir(torch.optim))
def test_known_decays_are_what_the_optimizer_does_to_a_weight_without_gradient(name):
    """A weight whose gradient is always 0 only decays; where the decay is a factor, it is the one we use."""
    kind = getattr(timm.optim, name, None) or getattr(torch.optim, name)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        pytest.skip("no optimizer")
    W = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64))
    try:
        optimizer = kind([W], lr=0.01, weight_decay=0.3)
    except (TypeError, ValueError, AttributeError):
        pytest.skip("takes other arguments")
    decay = decay_of(optimizer, optimizer.param_groups[0])
    if decay.reason or name == "Adahessian":  # it wants a graph of the gradient
        pytest.skip(decay.reason)
    forgetting = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for _ in range(5):
        W.grad = torch.zeros_like(W)
        optimizer.step()
        forgetting = decay.advance(forgetting, optimizer.param_groups[0])
    start = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    assert forgetting[0, 0] < 0.99
    assert relative_error(W.detach(), forgetting[0, 0] * start) < 1e-6


class Mirror(PlasticPathway):
    """`P` is `W` upside down, twice as large: a plastic rule that nobody told of closed forms."""

    state_type = __import__("collections").namedtuple("MirrorState", "P")
    plastic = "P"

    def feedback_weight(self, W, state):
        return state.P.flip(0) / 2

    def change(self, dW, state):
        return 2 * dW.flip(0)


def test_a_new_plastic_rule_collapses_without_a_line_of_its_own():
    class MirrorRule(PlasticRule):
        name, title, formula, source, cost = "mirror", "mirror", "F = P^ / 2, dP = 2 dW^", "a test", "none"

        def pathway(self, layout: WeightLayout):
            return Mirror(layout)

        def initial_state(self, layout, draw):
            return Mirror.state_type(draw.uniform(layout.shape, layout.xavier_std))

    RULES.register("mirror")(MirrorRule)
    try:
        finals = []
        for strategy in ("fused", "collapsed"):
            model = convert(mlp(), "mirror", options={"strategy": strategy})
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
            couple(model, optimizer)
            generator = torch.Generator().manual_seed(1)
            for _ in range(STEPS):
                x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
                optimizer.zero_grad()
                (model(x) - x[:, :6]).square().mean().backward()
                optimizer.step()
            finals.append(model)
        fused, collapsed = finals
        assert len(list(collapsed.parameters())) == 2 and len(list(fused.parameters())) == 4
        for i in (0, 2):
            assert relative_error(collapsed[i].weight, fused[i].weight) < 1e-10
            F = [m[i].feedback_of_weight.feedback_weight(m[i].weight) for m in finals]
            assert relative_error(F[1], F[0]) < 1e-10
    finally:
        del RULES._entries["mirror"]


def steps(model, optimizer, count=3):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 8).double()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: timm.optim.Lion(p),
    ],
)
@pytest.mark.parametrize("rule", ["pfa", "kp", "pfa-o"])
def test_training_uncoupled_warns_once_and_names_the_line(make, rule):
    model = convert(mlp(), rule)
    with pytest.warns(UserWarning, match=r"couple\(model, optimizer\)") as caught:
        steps(model, make(model.parameters()), 5)
    assert len(caught) == 1


@pytest.mark.parametrize("case", ["coupled", "fa", "usf", "fused", "one step", "accumulation"])
def test_nothing_warns_where_nothing_is_wrong(case):
    options = {"strategy": "fused"} if case == "fused" else {}
    model = convert(mlp(), case if case in RULES else "pfa", options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case == "coupled":
            couple(model, optimizer)
        if case == "accumulation":
            for _ in range(3):
                model(torch.randn(4, 8).double()).square().mean().backward()
            optimizer.step()
        else:
            steps(model, optimizer, 1 if case == "one step" else 5)


@pytest.mark.parametrize("rule", ["pfa", "pfa-o", "kp"])
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("name", ["AdamW", "Adam with L2", "Lion, corrected"])
def test_forgetting_moves_R_a_part_of_the_way_after_each_step(rule, density, name):
    make, factor = OPTIMIZERS[name]
    ours, expected, model, handle = train_beside_literal(
        rule, make, factor, forgetting=40, feedback_density=density
    )
    for F, F_literal in zip(ours, expected, strict=True):
        assert relative_error(F, F_literal) < 1e-10
    assert all("forgets its start in 40 steps" in reason for reason in handle.strategy.values())
    s = model[0].feedback_of_weight.forgetting[0].item()
    assert s <= (1 - 1 / 40) ** STEPS * (1 + 1e-9)


@pytest.mark.parametrize("rule", ["pfa", "kp"])
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("arguments", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_under_sgd_the_literal_strategy_forgets_as_the_closed_form_does(rule, density, arguments):
    F = {}
    for strategy in ("fused", "collapsed"):
        model = convert(mlp(), rule, options={"strategy": "fused", "feedback_density": density}, seed=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1, **arguments)
        handle = couple(model, optimizer, forgetting=25, collapse=strategy == "collapsed")
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            (model(x) - x[:, :6].roll(1, 1)).square().mean().backward()
            optimizer.step()
        F[strategy] = [model[i].feedback_of_weight.feedback_weight(model[i].weight) for i in (0, 2)]
        assert set(handle.strategy) == {"0.weight", "2.weight"}
    for a, b in zip(F["collapsed"], F["fused"], strict=True):
        assert relative_error(a, b) < 1e-10


@pytest.mark.parametrize("steps", [0, 0.5, -1, float("nan")])
def test_less_than_a_step_is_refused(steps):
    model = convert(mlp(), "pfa")
    with pytest.raises(UserError, match="at least 1 step"):
        couple(model, torch.optim.SGD(model.parameters(), lr=0.1), forgetting=steps)


def test_a_step_that_a_scaler_skips_forgets_nothing():
    for strategy in ("fused", "collapsed"):
        model = convert(mlp(), "pfa", options={"strategy": strategy})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
        couple(model, optimizer, forgetting=4)
        before = [model[i].feedback_of_weight.feedback_weight(model[i].weight) for i in (0, 2)]
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.full((4, 8), torch.inf, dtype=torch.float64)).sum()).backward()
        scaler.step(optimizer)
        after = [model[i].feedback_of_weight.feedback_weight(model[i].weight) for i in (0, 2)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
