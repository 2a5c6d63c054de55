"""Direct feedback alignment against its definition.

The literal computation cuts every layer off from its input and adds, for each, the inner product of that
input with `F e`: what autograd makes of this sum is direct feedback alignment, residual branches included.
"""

import copy

import pytest
import timm
import torch
from harness import EXACT, relative_error
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pfa_convert import UserError, convert, load, revert, save
from pfa_convert.comparison import forward_difference
from pfa_convert.models import build


def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, groups=4, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2),
        nn.Tanh(),
        nn.Flatten(2),
        nn.Linear(36, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 3),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(6, 6, 3, padding=1)
        self.first, self.second = nn.Conv1d(6, 6, 3, padding=1, bias=False), nn.Conv1d(6, 6, 1)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean(-1))


NETS = {
    "perceptron": (perceptron, (5, 6)),
    "convolutional": (convolutional, (5, 6, 10, 10)),
    "residual": (Residual, (5, 6, 9)),
    "paper's resnet20": (lambda: build("paper/resnet20", width=4), (3, 3, 32, 32)),
}


@pytest.fixture(params=NETS)
def problem(request):
    torch.manual_seed(0)
    make, shape = NETS[request.param]
    return make().double(), torch.randn(shape).double()


def targets_for(x):
    return torch.arange(len(x)) % 3


def gradients(model, x):
    model.zero_grad()
    functional.cross_entropy(model(x), targets_for(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def sent_down(layer, F, e, x):
    """`F e`, of the shape of `x`."""
    if isinstance(layer, nn.Linear):
        return (e @ F).reshape(len(e), *(1,) * (x.dim() - 2), -1).expand(x.shape)
    x = x.detach().requires_grad_()
    arguments = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    operation = getattr(functional, type(layer).__name__.lower().replace("transpose", "_transpose"))
    y = operation(x, F, **arguments)
    error = e.reshape(*e.shape, *(1,) * (y.dim() - 2)).expand(y.shape)
    return torch.autograd.grad(y, x, error)[0]


def literal(plain, feedback, x):
    layers = {name: m for name, m in plain.named_modules() if name in feedback}
    with torch.no_grad():
        e = plain(x).softmax(1)
    e = (e - functional.one_hot(targets_for(x), e.shape[1])) / len(x)
    terms = []

    def cut(name):
        def hook(layer, inputs):
            terms.append((inputs[0] * sent_down(layer, feedback[name], e, inputs[0]).detach()).sum())
            return inputs[0].detach()

        return hook

    handles = [layer.register_forward_pre_hook(cut(name)) for name, layer in layers.items()]
    buffers = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    plain.zero_grad()
    (functional.cross_entropy(plain(x), targets_for(x)) + sum(terms)).backward()
    for handle in handles:
        handle.remove()
    plain.load_state_dict(buffers, strict=False)
    return {name: p.grad for name, p in plain.named_parameters()}


def feedback_of(model):
    return {
        site.name: model.get_submodule(site.owner).feedback_of_weight.F for site in model.conversion.sites
    }


def test_the_gradients_are_those_of_the_definition(problem):
    plain, x = problem
    model = convert(plain, "dfa")
    expected = literal(plain, feedback_of(model), x)
    ours = gradients(model, x)
    assert ours.keys() == expected.keys()
    assert all(relative_error(ours[name], expected[name]) <= EXACT for name in ours)


def test_a_perceptrons_errors_written_out():
    torch.manual_seed(0)
    plain, x = perceptron().double(), torch.randn(5, 6).double()
    model = convert(plain, "dfa")
    F = feedback_of(model)
    a1 = plain[0](x)
    h1 = a1.tanh()
    a2 = plain[2](h1)
    h2 = a2.relu()
    e = (plain[4](h2).softmax(1) - functional.one_hot(targets_for(x), 3)) / 5
    delta2 = (e @ F["4"]) * (a2 > 0)
    delta1 = (e @ F["2"]) * (1 - h1**2)
    ours = gradients(model, x)
    for name, expected in {
        "4.weight": e.t() @ h2,
        "2.weight": delta2.t() @ h1,
        "0.weight": delta1.t() @ x,
    }.items():
        assert relative_error(ours[name], expected) <= EXACT
    assert F["0"].shape == (3, 6) and F["2"].shape == (3, 8)


def test_the_forward_is_unchanged_and_revert_gives_the_plain_model_back(problem):
    plain, x = problem
    model = convert(plain, "dfa")
    assert forward_difference(plain, model, x) == 0
    back = revert(model)
    assert type(back) is type(plain) and not hasattr(back, "output_errors")
    ours, theirs = gradients(back, x), gradients(copy.deepcopy(plain), x)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_forward_passes_before_one_backward_pass_do_not_mix(problem):
    plain, x = problem
    model = convert(plain.eval(), "dfa")
    apart = [gradients(model, part) for part in (x, x.flip(0) * 2)]
    model.zero_grad()
    losses = [functional.cross_entropy(model(part), targets_for(part)) for part in (x, x.flip(0) * 2)]
    sum(losses).backward()
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, apart[0][name] + apart[1][name]) <= EXACT


def test_a_graph_that_is_kept_gives_the_gradients_again(problem):
    plain, x = problem
    model = convert(plain, "dfa")
    loss = functional.cross_entropy(model(x), targets_for(x))
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss.backward()
    assert all(relative_error(p.grad, 2 * once[name]) <= EXACT for name, p in model.named_parameters())


def test_a_copy_has_errors_of_its_own(problem):
    plain, x = problem
    model = convert(plain, "dfa")
    twin = copy.deepcopy(model)
    assert twin.output_errors is not model.output_errors
    ours, theirs = gradients(model, x), gradients(twin, x)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_survives_saving(tmp_path):
    model = convert(build("paper/resnet20", num_classes=3), "dfa", options={"feedback_density": 0.5})
    save(model, tmp_path / "model.safetensors", "paper/resnet20", num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    ours, theirs = gradients(load(tmp_path / "model.safetensors"), x), gradients(model, x)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_vit", "test_nfnet", "test_convnext"])
def test_real_models_train(name):
    torch.manual_seed(0)
    model = convert(timm.create_model(name, num_classes=3), "dfa")
    size = timm.get_pretrained_cfg(name).input_size[-1]
    ours = gradients(model, torch.randn(2, 3, size, size))
    weights = {site.weight for site in model.conversion.sites}
    assert weights <= ours.keys() and all(g.isfinite().all() for g in ours.values())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = perceptron(), nn.Linear(3, 3)
        self.reentrant = None

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


def test_activation_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model, x = convert(Checkpointed().double(), "dfa"), torch.randn(5, 6).double()
    without = gradients(model, x)
    model.reentrant = False
    assert all(torch.equal(g, without[name]) for name, g in gradients(model, x).items())
    model.reentrant = True
    with pytest.raises(RuntimeError, match="no error from the model's output"):
        gradients(model, x.requires_grad_())


def error_of_half_precision(model, x):
    exact = torch.cat([g.flatten() for g in gradients(model, x).values()])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    model.zero_grad()
    functional.cross_entropy(output.float(), targets_for(x)).backward()
    return relative_error(torch.cat([p.grad.flatten() for p in model.parameters()]), exact)


def test_half_precision_has_an_error_like_backpropagations(problem):
    plain, x = problem
    ours, theirs = (
        error_of_half_precision(convert(plain.float(), rule), x.float()) for rule in ("dfa", "bp")
    )
    assert 0 < ours < 5 * theirs


def test_it_compiles_in_one_graph():
    torch.manual_seed(0)
    model, x = convert(Residual().double(), "dfa"), torch.randn(5, 6, 9).double()
    eager = gradients(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    functional.cross_entropy(compiled(x), targets_for(x)).backward()
    assert all(relative_error(p.grad, eager[name]) <= EXACT for name, p in model.named_parameters())


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return {"logits": self.body(x)}


def test_a_model_whose_output_is_not_one_tensor_is_refused():
    model = convert(TwoOutputs(), "dfa")
    with pytest.raises(UserError, match=r"one tensor of logits \(5, 3\); this one returns a dict: wrap it"):
        model(torch.randn(5, 6))
    assert (
        set(model.eval()(torch.randn(5, 6).detach())) == {"logits"} if not torch.is_grad_enabled() else True
    )


def test_an_output_of_another_size_is_refused_and_can_be_given():
    class Wider(nn.Sequential):
        def forward(self, x):
            logits = super().forward(x)
            return torch.cat([logits, logits], dim=1)

    with pytest.raises(UserError, match=r"returns \(5, 6\): set the rule's option 'outputs'"):
        convert(Wider(*perceptron()), "dfa")(torch.randn(5, 6))
    model = convert(Wider(*perceptron()), "dfa", options={"outputs": 6})
    gradients(model, torch.randn(5, 6))
    assert model[0].feedback_of_weight.F.shape == (6, 6)


def test_a_loss_that_is_not_of_the_models_output_is_refused():
    model = convert(perceptron(), "dfa")
    with pytest.raises(RuntimeError, match="the loss must depend on what model"):
        nn.Sequential.forward(model[:3], torch.randn(5, 6)).sum().backward()


def test_a_second_derivative_is_refused():
    model = convert(perceptron(), "dfa")
    with pytest.raises(RuntimeError, match="no second derivative"):
        model(torch.randn(5, 6)).sum().backward(create_graph=True)


def test_sparse_feedback_has_the_density_asked_for():
    F = convert(
        nn.Sequential(nn.Linear(400, 10), nn.Linear(10, 50)), "dfa", options={"feedback_density": 0.2}
    )
    share = (F[0].feedback_of_weight.F != 0).double().mean().item()
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 20000) ** 0.5


def test_the_draw_is_xaviers_for_the_shape_of_F():
    F = convert(nn.Sequential(nn.Conv2d(64, 8, 3), nn.Conv2d(8, 30, 3)), "dfa")[0].feedback_of_weight.F
    assert F.shape == (30, 64, 3, 3)
    assert abs(F.std().item() / (2 / ((30 + 64) * 9)) ** 0.5 - 1) < 0.02


def test_a_table_that_all_examples_share_gets_the_sum_of_their_errors():
    class WithTable(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4))
            self.mixing, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.relu(x + self.mixing(self.table)))

    torch.manual_seed(0)
    model, x = convert(WithTable().double(), "dfa"), torch.randn(5, 6).double()
    gradients(model, x)
    with torch.no_grad():
        e = (model(x).softmax(1) - functional.one_hot(targets_for(x), 3)) / 5
    expected = e.sum(0, keepdim=True) @ model.mixing.feedback_of_weight.F
    assert relative_error(model.table.grad, expected) <= EXACT
