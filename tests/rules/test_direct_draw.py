"""The law of what is drawn directly: that of the literal `B` and `R`, for normal entries."""

import math

import pytest
import torch
from torch import nn

from pfa_convert import convert
from pfa_convert.alignment import angle
from pfa_convert.feedback.wishart import product_with_transpose
from pfa_convert.rules import RULES

DRAWS, OUTPUTS, INPUTS, EXPANSION = 1500, 6, 9, 4


def draws(strategy, rule="pfa", expansion=EXPANSION):
    """Return `G`, `F_0` and the path angle of `G W` for many seeds."""
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS, bias=False)
    options = {"strategy": strategy, **({"expansion": expansion} if rule == "pfa" else {})}
    G, F, angles = [], [], []
    for seed in range(DRAWS):
        layer = convert(plain, rule, options=options, seed=seed)
        feedback = layer.feedback_of_weight
        G.append(feedback.pathway.gram(feedback.named_state())[0].double())
        F.append(feedback.feedback_weight(layer.weight).double())
        angles.append(angle(G[-1] @ layer.weight.double(), layer.weight))
    return torch.stack(G).detach(), torch.stack(F).detach(), torch.tensor(angles)


def z_of_means(a, b):
    """Return the largest difference of means over its standard error, entry by entry."""
    error = ((a.var(dim=0) + b.var(dim=0)) / DRAWS).sqrt()
    return ((a.mean(dim=0) - b.mean(dim=0)) / error).abs().max().item()


@pytest.fixture(scope="module", params=[("pfa", 4), ("pfa", 1), ("pfa", 0.5)], ids=str)
def both(request):
    rule, expansion = request.param
    return [draws(strategy, rule, expansion) for strategy in ("fused", "collapsed")]


def test_mean_and_covariance_of_G_are_the_literal_ones(both):
    (G, *_), (G_direct, *_) = both
    # 36 entries, or 666 products of two: the largest of that many normal numbers is below 5.
    assert z_of_means(G, G_direct) < 5
    pairs = torch.triu_indices(OUTPUTS * OUTPUTS, OUTPUTS * OUTPUTS)
    products = [(g.flatten(1)[:, pairs[0]] * g.flatten(1)[:, pairs[1]]) for g in (G, G_direct)]
    assert z_of_means(*products) < 5


def test_mean_and_covariance_of_the_first_F_are_the_literal_ones(both):
    (_, F, _), (_, F_direct, _) = both
    assert z_of_means(F, F_direct) < 5
    pairs = torch.triu_indices(OUTPUTS * INPUTS, OUTPUTS * INPUTS)
    products = [(f.flatten(1)[:, pairs[0]] * f.flatten(1)[:, pairs[1]]) for f in (F, F_direct)]
    assert z_of_means(*products) < 5


def test_G_and_F_depend_on_each_other_as_in_the_literal_draw(both):
    """`E[F F^T | B]` is a multiple of `G`: their product tells `L` from another root."""
    (G, F, _), (G_direct, F_direct, _) = both
    assert z_of_means((F.transpose(1, 2) @ G @ F), (F_direct.transpose(1, 2) @ G_direct @ F_direct)) < 5


def test_path_angles_are_those_of_the_literal_draw(both):
    (*_, angles), (*_, direct) = both
    assert z_of_means(angles[:, None], direct[:, None]) < 4
    assert z_of_means(angles[:, None].square(), direct[:, None].square()) < 4


def test_pfa_o_draws_F_as_the_rotated_R():
    (_, F, _), (_, F_direct, angles) = draws("fused", "pfa-o"), draws("collapsed", "pfa-o")
    assert z_of_means(F, F_direct) < 5 and z_of_means(F.square(), F_direct.square()) < 5
    assert angles.max() < 1e-5
    sigma = math.sqrt(2 / (OUTPUTS + INPUTS))
    assert F_direct.std().item() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("size", [1, 5, 512, 513, 1300])
def test_the_product_of_a_triangular_matrix_is_right_in_its_own_memory(size):
    L = torch.randn(2 if size < 600 else 1, size, size, dtype=torch.float64).tril()
    expected = L @ L.mT
    ours = product_with_transpose(L)
    assert ours.data_ptr() == L.data_ptr()
    assert (ours - expected).norm() <= 1e-13 * expected.norm()


def test_nothing_of_the_middle_population_is_made():
    sizes = []

    class Look(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(t))
            return result

    with Look():
        convert(nn.Linear(60, 50), "pfa", options={"expansion": 100})
    assert max(sizes) <= 60 * 50


@pytest.mark.parametrize("density", [1, 0.5])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_draw_does_not_depend_on_pytorchs_default_device_and_dtype(rule, density):
    options = {"feedback_density": density} if "feedback_density" in RULES[rule].model_fields else {}
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    expected = convert(plain, rule, options=options).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            drawn = convert(plain, rule, options=options).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.keys() == expected.keys()
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)
