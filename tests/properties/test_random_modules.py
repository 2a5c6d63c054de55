"""Random modules of every operation that applies a weight: nothing missed, nothing changed but the error."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Line, applied_weights, as_reference, random_module
from steps import CONTEXTS, STATEMENTS, STEPS

from pfa_convert import convert, revert
from pfa_convert.alignment import feedback_of
from pfa_convert.audit.verify import verify
from pfa_convert.feedback import products
from pfa_convert.feedback.pathway import FeedbackPass
from pfa_convert.rules.fixed import FixedPathway

EXACT = 1e-10
"""In float64, of the largest gradient: a dozen steps, each of sums of a few dozen products."""

RULES = ["fa", "pfa", "usf", "kp"]

steps = st.builds(Line, st.sampled_from(sorted(STEPS)), st.sampled_from(sorted(CONTEXTS)), st.integers(1, 4))
statements = st.builds(Line, st.sampled_from(sorted(STATEMENTS)))
leaves = st.lists(st.one_of(steps, steps, steps, statements), min_size=1, max_size=4)
children = st.builds(lambda child: Line("child", child=tuple(child)), leaves)
programs = st.lists(st.one_of(steps, steps, steps, steps, statements, children), min_size=1, max_size=6)


def run(model, x, mask=None, seed=3):
    """Return the output, all gradients, and the state of the random numbers afterwards."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(x) if mask is None else model(x, mask)
    after = torch.get_rng_state()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (output * weights.to(output.dtype)).sum().backward()
    gradients = {
        name: p.grad
        for name, p in model.named_parameters()
        if p.grad is not None and "feedback_of" not in name
    }
    return output.detach(), gradients | {"x": x.grad}, after


def assert_same(ours, theirs, tolerance=None):
    assert torch.equal(ours[0], theirs[0]), "another output"
    assert torch.equal(ours[2], theirs[2]), "other random numbers"
    assert ours[1].keys() == theirs[1].keys()
    scale = max(gradient.abs().max().item() for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        if tolerance is None:
            assert torch.equal(ours[1][name], gradient), name
        else:
            assert (ours[1][name] - gradient).abs().max().item() <= tolerance * (scale + 1), name


def assert_through_feedback(ours, reference, plain):
    """The output is the plain model's, bit for bit; the gradients are the reference's."""
    assert_same(ours, (plain[0], reference[1], plain[2]), EXACT)


def attributes(model):
    kept = ("count", "last", "p", "flag", "mixed", "training", "shift")
    return {
        (name, key): getattr(module, key, None)
        for name, module in model.named_modules()
        for key in kept
        if key != "shift" or "shift" in module._buffers
    }


def assert_same_attributes(ours, theirs):
    ours, theirs = attributes(ours), attributes(theirs)
    for key, value in theirs.items():
        same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
        assert same, key


def turned(model):
    """Change attributes after conversion, as a user may."""
    for module in model.modules():
        if hasattr(module, "flag"):
            module.flag, module.p, module.mixed = False, 0.6, False
    return model


def check(lines, rule, seed):
    torch.manual_seed(seed)
    plain, x = random_module(lines, 3), torch.randn(3, 5, 3)
    mask = (torch.rand(3, 5, 1) > 0.3).float()
    before, state = copy.deepcopy(plain), torch.get_rng_state()
    bp = convert(plain, "bp")
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.state_dict().keys() == before.state_dict().keys()
    assert_same_attributes(plain, before)

    for training in (True, False):
        one, two = bp.train(training), plain.train(training)
        for given_mask in (None, mask):
            assert_same(run(one, x, given_mask), run(two, x, given_mask))
            assert_same_attributes(one, two)
        assert_same(run(turned(one), x), run(turned(two), x))

    plain, x, mask = before.double(), x.double(), mask.double()
    before = copy.deepcopy(plain)
    equal = convert(plain, "bp", options={"strategy": "explicit"})
    assert_same(run(equal, x), run(copy.deepcopy(plain), x), EXACT)

    plain = copy.deepcopy(before)
    converted = convert(plain, rule)
    report = converted.conversion
    applied, sites = applied_weights(plain), {site.weight for site in report.sites}
    assert sites <= applied, "a site that applies no weight"
    named = {one.name for one in report.skipped}
    named |= {other.name for other in report.others if other.use == "applied without gradients"}
    assert applied - sites <= named, "a weight that is neither site nor named"

    def feedback(name):
        weight = converted.get_parameter(name)
        return feedback_of(converted, name).feedback_weight(weight.detach()) if name in sites else None

    reference = as_reference(copy.deepcopy(plain), feedback)
    for training in (True, False):
        models = converted.train(training), reference.train(training), plain.train(training)
        for given_mask in (None, mask):
            assert_through_feedback(*(run(model, x, given_mask) for model in models))
        assert_through_feedback(*(run(turned(model), x) for model in models))
        assert verify(converted, x).balanced
    back = revert(converted)
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert back.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_operation(name):
    check([Line("nn.Linear", features=4), Line(name, features=3), Line("@", features=2)], "fa", 0)


@pytest.mark.parametrize("context", sorted(CONTEXTS))
@pytest.mark.parametrize("name", ["linear", "@ t", "nn.Linear", "W + B @ A"])
def test_each_context(name, context):
    check([Line("nn.Linear", features=4), Line(name, context, features=3), Line("@", features=2)], "fa", 0)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_each_statement(name):
    check(
        [
            Line("@", features=4),
            Line(name),
            Line("linear", features=3),
            Line("child", child=(Line(name), Line("@"))),
        ],
        "fa",
        0,
    )


EXAMPLES = int(os.environ.get("RANDOM_MODULES", "0"))
"""How many random modules to look for a failure among; else always the same few."""


@settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs, st.sampled_from(RULES), st.integers(0, 1000))
def test_random_modules(lines, rule, seed):
    check(lines, rule, seed)


def test_an_operation_that_is_not_known_is_found(monkeypatch):
    monkeypatch.delitem(products.PRODUCTS, torch.inner)
    with pytest.raises(AssertionError, match="neither site nor named"):
        check([Line("inner")], "fa", 0)


def test_a_forward_that_is_changed_is_found(monkeypatch):
    unchanged = FeedbackPass.forward
    monkeypatch.setattr(FeedbackPass, "forward", staticmethod(lambda *args: unchanged(*args) + 1e-12))
    with pytest.raises(AssertionError, match="another output"):
        check([Line("linear")], "fa", 0)


def test_an_error_that_keeps_backpropagation_is_found(monkeypatch):
    model = random_module([Line("linear"), Line("@")], 3).double()
    converted, x = convert(model, "fa"), torch.randn(3, 5, 3, dtype=torch.float64)
    F = {name: converted.get_submodule(f"feedback_of_{name}").F0 for name in applied_weights(model)}
    monkeypatch.setattr(FixedPathway, "feedback_weight", lambda self, W, *state: W)
    with pytest.raises(AssertionError):
        assert_same(run(converted, x), run(as_reference(model, F.get), x), EXACT)
