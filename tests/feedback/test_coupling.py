"""The collapsed strategy: the same trajectory as the literal algorithm, and its refusals."""

import copy

import pytest
import torch
from harness import relative_error
from torch import nn

from pfa_convert import UserError, alignment, convert, couple
from pfa_convert.models import build

SGD_VARIANTS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "maximize": True},
    {"momentum": 0.9, "foreach": True},
    {"momentum": 0.9, "fused": True},
]


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=4, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(6 * 64, 5),
    )


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 5))


def trajectory(make, rule, strategy, sgd, steps=200, accumulate=1, **options):
    """Train in float64 with both schedules and return the model."""
    options["strategy"] = strategy
    if rule != "kp":
        options.setdefault("law", "uniform")  # which all strategies draw alike
    model = convert(make().double(), rule, options=options)
    decay = 0.1 if sgd else 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=decay, **sgd)
    if strategy == "collapsed":
        assert set(couple(model, optimizer).strategy.values()) == {"collapsed"}
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0, 0.5, 0.25)[step * 3 // steps]
        optimizer.param_groups[0]["weight_decay"] = decay if step < 60 else decay / 100
        for _ in range(accumulate):
            x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
            targets = torch.randint(5, (4,), generator=generator)
            sign = -1 if sgd.get("maximize") else 1
            (sign * nn.functional.cross_entropy(model(x), targets) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def weights(model):
    return torch.cat([p.flatten() for name, p in model.named_parameters() if "feedback_of" not in name])


@pytest.mark.parametrize("sgd", SGD_VARIANTS, ids=str)
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_explicit_fused_and_collapsed_make_the_same_200_steps(make, sgd):
    explicit, fused, collapsed = (
        trajectory(make, "pfa", strategy, sgd) for strategy in ("explicit", "fused", "collapsed")
    )
    assert relative_error(weights(fused), weights(explicit)) < 1e-10
    assert relative_error(weights(collapsed), weights(explicit)) < 1e-10
    # The feedback weights themselves, not only what they did.
    ours, theirs = alignment(collapsed), alignment(explicit)
    for site, values in theirs.items():
        assert ours[site]["angle_deg"] == pytest.approx(values["angle_deg"], abs=1e-8)
    # Half of R's first value or more is forgotten: the test tests something.
    assert all(
        m.forgetting[0] < 0.5 for n, m in collapsed.named_modules() if n.endswith("feedback_of_weight")
    )


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("kp", {}),
        ("kp", {"feedback_density": 0.5}),
        ("pfa-o", {}),
        ("pfa-o", {"feedback_density": 0.5}),
        ("pfa", {"feedback_density": 0.5}),
        ("pfa", {"expansion": 1}),
        ("pfa", {"expansion": 0.5}),
    ],
    ids=str,
)
def test_every_plastic_rule_collapses_exactly(rule, options):
    reference = trajectory(conv_net, rule, "fused", {"momentum": 0.9}, **options)
    collapsed = trajectory(conv_net, rule, "collapsed", {"momentum": 0.9}, **options)
    assert relative_error(weights(collapsed), weights(reference)) < 1e-10


def test_gradient_accumulation_keeps_it_exact():
    reference = trajectory(mlp, "pfa", "explicit", {"momentum": 0.9}, steps=40, accumulate=3)
    collapsed = trajectory(mlp, "pfa", "collapsed", {"momentum": 0.9}, steps=40, accumulate=3)
    assert relative_error(weights(collapsed), weights(reference)) < 1e-10


def test_groups_with_their_own_learning_rate_and_weight_decay():
    finals = []
    for collapse in (False, True):
        strategy = "collapsed" if collapse else "fused"
        model = convert(mlp().double(), "pfa", options={"strategy": strategy, "law": "uniform"})
        groups = [
            {"params": model[1].parameters(), "lr": 0.05, "weight_decay": 0.2, "momentum": 0.5},
            {"params": model[3].parameters(), "lr": 0.02, "weight_decay": 0.05},
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        if collapse:
            couple(model, optimizer)
        generator = torch.Generator().manual_seed(1)
        for _ in range(30):
            x = torch.randn(4, 192, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        finals.append(weights(model))
    assert relative_error(finals[1], finals[0]) < 1e-10


def test_a_weight_without_a_gradient_does_not_forget():
    model = convert(mlp(), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    couple(model, optimizer)
    model[3](torch.randn(2, 24)).sum().backward()
    optimizer.step()
    assert model[1].feedback_of_weight.forgetting[0] == 1
    assert model[3].feedback_of_weight.forgetting[0].item() == pytest.approx(0.99)


def test_a_step_that_the_grad_scaler_skips_does_not_forget():
    model = convert(mlp(), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    couple(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, expected in ((float("inf"), 1.0), (1.0, 0.99)):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(2, 192)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert model[3].feedback_of_weight.forgetting[0].item() == pytest.approx(expected)


def test_what_is_never_forgotten_is_said():
    for optimizer, reason in (
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "collapsed: the decay of Adam passes"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0), "collapsed: weight_decay is 0"),
        (lambda p: torch.optim.SGD(p, lr=0.1), "collapsed: weight_decay is 0"),
    ):
        model = convert(mlp(), "pfa")
        handle = couple(model, optimizer(model.parameters()))
        assert all(said.startswith(reason) for said in handle.strategy.values())


def test_strategies_asked_for_by_name_and_fixed_rules_are_kept():
    overrides = [{"match": "1", "rule": "pfa", "options": {"strategy": "fused"}}]
    model = convert(mlp(), "fa", overrides=overrides)
    strategy = couple(model, torch.optim.SGD(model.parameters(), lr=0.1)).strategy
    assert strategy["1.weight"].startswith("fused") and strategy["3.weight"].startswith("fixed")


@pytest.mark.parametrize("strategy", ["fused", "collapsed"])
def test_R_leaves_the_optimizer_and_the_model(strategy):
    model = convert(mlp(), "pfa", options={"strategy": strategy})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == (6 if strategy == "fused" else 4)
    couple(model, optimizer, collapse=True)
    names = {name for name, _ in model.named_parameters()}
    assert names == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert len(optimizer.param_groups[0]["params"]) == 4


def test_mistakes_are_named():
    model = convert(mlp(), "pfa")
    with pytest.raises(UserError, match="misses the parameter"):
        couple(model, torch.optim.SGD([model[1].weight], lr=0.1))
    with pytest.raises(UserError, match="no feedback weights"):
        couple(mlp(), torch.optim.SGD(mlp().parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    couple(model, optimizer)
    with pytest.raises(UserError, match="coupled to an optimizer already"):
        couple(model, optimizer)
    with pytest.raises(UserError, match="converted already"):
        convert(model)
    late = convert(mlp(), "pfa")
    optimizer = torch.optim.SGD(late.parameters(), lr=0.1, momentum=0.9)
    late(torch.randn(2, 192)).sum().backward()
    optimizer.step()
    with pytest.raises(UserError, match="before the first"):
        couple(late, optimizer)


@pytest.mark.parametrize("rule", ["pfa", "pfa-o", "kp"])
@pytest.mark.parametrize("couple_first", [True, False])
def test_state_resumes_bit_exact_in_a_freshly_converted_model(rule, couple_first):
    def step(model, optimizer, generator):
        optimizer.zero_grad()
        model(torch.randn(4, 192, generator=generator)).square().mean().backward()
        optimizer.step()

    def fresh():
        model = convert(mlp(), rule, seed=3)
        return model

    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    couple(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        step(model, optimizer, generator)
    state, optimizer_state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    position = generator.get_state()
    for _ in range(5):
        step(model, optimizer, generator)

    resumed = fresh()
    if couple_first:
        second = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        couple(resumed, second)
        resumed.load_state_dict(state)
    else:
        resumed.load_state_dict(state)
        second = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        couple(resumed, second)
    second.load_state_dict(optimizer_state)
    generator.set_state(position)
    for _ in range(5):
        step(resumed, second, generator)
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_K_is_dropped_once_it_no_longer_matters():
    model = convert(mlp(), "pfa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0)
    couple(model, optimizer)
    start = {name: tensor.clone() for name, tensor in model.named_parameters()}
    for step in range(300):
        if step == 200:  # the weights have decayed as well: F = G W + s K holds for any others
            optimizer.param_groups[0]["weight_decay"] = 0.0
            model.load_state_dict({**model.state_dict(), **start})
        optimizer.zero_grad()
        x = torch.randn(4, 192)
        (model(x) - x[:, :5]).square().mean().backward()
        optimizer.step()
    feedback = model[3].feedback_of_weight
    assert feedback.pathway.forgotten and feedback.K.numel() == 0
    G = feedback.G[0]
    assert relative_error(feedback.feedback_weight(model[3].weight), G @ model[3].weight) < 1e-6
    reloaded = convert(mlp(), "pfa")
    reloaded.load_state_dict(model.state_dict())
    assert reloaded[3].feedback_of_weight.pathway.forgotten


def test_s_changes_without_a_recompilation():
    model = convert(build("paper/mlp", in_features=192), "pfa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    couple(model, optimizer)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            optimizer.zero_grad()
            compiled(torch.randn(4, 192)).square().mean().backward()
            optimizer.step()
    assert model[1].feedback_of_weight.forgetting[0] < 1
