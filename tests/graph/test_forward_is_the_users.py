"""A converted model runs the forward that its user wrote: contexts, attributes, randomness, effects."""

import copy
import gc
import threading
import warnings
import weakref
from functools import partial

import pytest
import timm
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pfa_convert import convert, revert


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def module(forward, **attributes):
    """Return a module with this forward and these attributes."""
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def under_autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return functional.linear(x, self.W)


def partly_frozen(self, x):
    with torch.no_grad():
        y = functional.linear(x, self.W)
    return functional.linear(y, self.V)


@pytest.mark.parametrize("rule", ["bp", "fa", "pfa"])
def test_an_autocast_inside_a_forward_stays(rule):
    plain = module(under_autocast, W=parameter(3, 4))
    x = torch.randn(2, 4)
    output = convert(plain, rule)(x)
    assert output.dtype == torch.bfloat16 and torch.equal(output, plain(x))


@pytest.mark.parametrize("rule", ["bp", "fa", "pfa"])
def test_a_weight_that_is_applied_without_gradients_gets_none(rule):
    model = convert(module(partly_frozen, W=parameter(3, 4), V=parameter(2, 3)), rule)
    model(torch.randn(2, 4)).sum().backward()
    assert model.W.grad is None and model.V.grad is not None


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_noise_is_drawn_anew_and_attributes_are_read_at_each_call(rule):
    model = convert(module(lambda s, x: functional.linear(x, s.W) + torch.randn(3), W=parameter(3, 4)), rule)
    x = torch.randn(2, 4)
    assert not torch.equal(model(x), model(x))

    def dropped(self, x):
        return functional.dropout(functional.linear(x, self.W), self.p)

    model = convert(module(dropped, W=parameter(3, 4), p=0.0), rule)
    assert model(x).any()
    model.p = 1.0
    assert not model(x).any()


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_branch_on_a_value_is_taken_at_each_call(rule):
    def either(self, x):
        return functional.linear(x, self.W) if x.sum() > 0 else x

    plain = module(either, W=parameter(4, 4))
    model, x = convert(plain, rule), torch.ones(2, 4)
    assert torch.equal(model(x), plain(x)) and torch.equal(model(-x), -x)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_settings_of_timms_attention_work_after_conversion(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, depth=1, embed_dim=48, num_heads=2, num_classes=3, img_size=28 * 2)
    model = convert(plain, "fa").train()
    x = torch.randn(1, 3, 56, 56)
    outputs = []
    for one in (plain.train(), model):
        one.blocks[0].attn.attn_drop.p = 0.5
        one.blocks[0].attn.fused_attn = False
        torch.manual_seed(1)
        outputs.append(one(x))
    assert torch.equal(*outputs)
    torch.manual_seed(2)
    assert not torch.equal(model(x), outputs[1])


def test_the_input_size_can_be_set_after_conversion():
    torch.manual_seed(0)
    plain = timm.create_model("swinv2_tiny_window8_256", depths=(1, 1, 1, 1), embed_dim=24, num_classes=3)
    model = convert(plain, "fa").eval()
    for one in (plain.eval(), model):
        one.set_input_size((128, 128), window_size=4)
    x = torch.randn(1, 3, 128, 128)
    assert torch.equal(model(x), plain(x))


def test_conversion_leaves_no_effect_on_the_users_model():
    def counts(self, x):
        self.calls += 1
        self.seen.append(1)
        self.aux = x.mean()
        return functional.linear(x, self.W)

    plain = module(counts, W=parameter(3, 4), calls=0, seen=[])
    before = dict(vars(plain))
    model = convert(plain, "fa")
    assert vars(plain).keys() == before.keys() and plain.calls == 0 and plain.seen == []
    assert model.calls == 0 and model.seen == [] and not hasattr(model, "aux")
    model(torch.randn(2, 4))
    assert model.calls == 1 and model.seen == [1] and isinstance(model.aux, torch.Tensor)
    model.aux = model.aux.detach()
    assert type(copy.deepcopy(revert(model))) is type(plain)


def test_conversion_in_another_thread_does_not_disturb_a_forward():
    """torch.fx's own tracer patches `nn.Module.__call__` for every thread as long as it traces."""
    big = timm.create_model("resnet18")
    small = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 4)
    expected, stop, failures = small(x), threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                if not torch.equal(small(x), expected):
                    failures.append("another output")
            except Exception as error:
                failures.append(repr(error))

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(3):
        convert(big, "fa")
    stop.set()
    thread.join()
    assert not failures


@pytest.mark.parametrize("weight", [lambda W: W, lambda W: 2 * W], ids=["as it is", "computed"])
def test_reentrant_checkpointing_inside_a_forward_is_refused(weight):
    def checkpointed(self, x):
        return checkpoint(lambda x: functional.linear(x, weight(self.W)), x, use_reentrant=True)

    model = convert(module(checkpointed, W=parameter(3, 4)).double(), "fa")
    with pytest.raises(RuntimeError, match="checkpoint"):
        error_below(model, torch.randn(2, 4, dtype=torch.float64))


CHECKPOINTED = {
    "one product": lambda s, x: torch.tanh(x @ s.W),
    "a computed weight": lambda s, x: torch.tanh(functional.linear(x, 2 * s.W)),
    "einsum": lambda s, x: torch.einsum("bi,io->bo", torch.tanh(x), s.W),
    "two products": lambda s, x: torch.tanh(x @ s.W) @ s.W,
    "beside an activation": lambda s, x: (torch.tanh(x @ s.W), x.exp())[0],
}


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp"])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_without_reentry_inside_a_forward_changes_nothing(name, rule):
    inner = CHECKPOINTED[name]

    def around(run):
        return lambda s, x: run(partial(inner, s), torch.sin(x) @ s.W) @ s.W

    torch.manual_seed(0)
    plain = module(around(lambda f, x: f(x)), W=parameter(4, 4)).double()
    saving = module(around(lambda f, x: checkpoint(f, x, use_reentrant=False)), W=plain.W)
    found, x = [], torch.randn(3, 4, dtype=torch.float64)
    for model in (convert(plain, rule), convert(saving, rule)):
        found.append((error_below(model, x), model.W.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_checkpointing_a_module_whose_forward_applies_a_weight():
    class Outer(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.inner = module(lambda s, x: functional.linear(x, s.W), W=parameter(3, 4))
            self.reentrant = reentrant

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    for reentrant in (True, False):
        model = convert(Outer(reentrant).double(), "fa")
        below = error_below(model, torch.randn(2, 4, dtype=torch.float64))
        expected = torch.ones(2, 3).double() @ feedback_of(model.inner, "W").F0
        assert relative_error(below, expected) <= EXACT


def test_a_method_other_than_forward_sends_its_error_through_the_feedback_weight():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = parameter(3, 4)

        def encode(self, x):
            return functional.linear(x, self.W)

        def forward(self, x):
            return self.encode(x) @ self.W

    model = convert(Autoencoder().double(), "fa")
    F = feedback_of(model, "W").F0
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    model.encode(x).sum().backward()
    assert relative_error(x.grad, torch.ones(2, 3).double() @ F) <= EXACT
    assert relative_error(error_below(model, x.detach()), torch.ones(2, 4).double() @ F.t() @ F) <= EXACT


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp"])
def test_layers_and_weights_that_only_other_methods_use_are_sites(rule):
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.aux = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)
            self.projection = parameter(4, 3)
            self.flag = False

        def forward(self, x=None):
            return self.body(x)

        def training_step(self, x):
            return self.head(self(x))

        def project(self, x):
            return x @ self.projection

        def behind_a_flag(self, x):
            return self.aux(x) if self.flag else x

    report = convert(Lightning(), rule).conversion
    assert {site.name for site in report.sites} == {"body", "head", "aux", "projection"}
    assert not report.skipped


def test_a_forward_keeps_no_activation_alive_after_it_has_ended():
    kept = []

    def forward(self, x):
        hidden = functional.linear(x, self.W).view(2, 3)
        kept.append(weakref.ref(hidden))
        return hidden.sum()

    model = convert(module(forward, W=parameter(3, 4)), "fa")
    gc.collect()
    gc.disable()
    try:
        model(torch.randn(2, 4))
        assert kept[-1]() is None
    finally:
        gc.enable()


def test_a_forward_that_warns_is_traced_where_warnings_are_errors():
    def warning(self, x):
        warnings.warn("slow", stacklevel=1)
        return functional.linear(x, self.W)

    model = convert(module(warning, W=parameter(3, 4)), "fa")
    assert [site.name for site in model.conversion.sites] == ["W"]
    with pytest.warns(UserWarning, match="slow"):
        model(torch.randn(2, 4))
