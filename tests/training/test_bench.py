"""The benchmark's own arithmetic; how long anything takes is not tested."""

import pytest
import torch

from pfa_convert.reporting.figures import growth_figure
from pfa_convert.training.bench import Contestant, Settings, Variant, bench_variants, measure, peak_memory


def test_each_rule_is_measured_with_the_strategies_that_it_has():
    variants = bench_variants(["fa", "pfa"], ["collapsed", "explicit"])
    names = [str(variant) for variant in variants]
    assert names == ["fa", "pfa collapsed", "pfa collapsed without K", "pfa explicit"]


def test_a_rule_that_has_an_option_is_measured_with_it_too():
    variants = bench_variants(["fa", "pfa"], ["collapsed"], {"block_size": 16})
    assert [str(variant) for variant in variants[1:]] == [
        "pfa collapsed",
        "pfa collapsed without K",
        "pfa collapsed block_size=16",
        "pfa collapsed block_size=16 without K",
    ]
    _, blocks = measure(Settings("paper/mlp", batch_size=600, steps=2, warmup=1), [variants[3]])
    layers = [(784, 512), (512, 512), (512, 10)]
    products = sum(2 * min(o, 16) * o * i for i, o in layers[1:2]) + 2 * 10 * 10 * 512
    backpropagation = sum(4 * 600 * i * o for i, o in layers) + sum(2 * 600 * i * o for i, o in layers[1:])
    assert blocks.flop_ratio == pytest.approx(1 + products / backpropagation)


def test_the_floor_counts_the_products_of_the_formula():
    settings = Settings("paper/mlp", batch_size=256, steps=2, warmup=1)
    bp, collapsed, explicit = measure(settings, [Variant("pfa", "collapsed"), Variant("pfa", "explicit")])
    layers = [(784, 512), (512, 512), (512, 10)]
    forward = sum(2 * 256 * i * o for i, o in layers)
    backpropagation = 2 * forward + sum(2 * 256 * i * o for i, o in layers[1:])
    mixing = sum(min(2 * o * o * i, 2 * 256 * o * o) for i, o in layers[1:])
    assert collapsed.flop_ratio == pytest.approx((backpropagation + mixing) / backpropagation)
    assert bp.flop_ratio == 1 and explicit.flop_ratio > 5


def test_memory_counts_weights_gradients_momentum_and_activations():
    contestant = Contestant(Settings("paper/mlp", batch_size=64), Variant("bp"), (64, 1, 28, 28))
    contestant.step()
    weights = 4 * sum(p.numel() for p in contestant.model.parameters())
    # Weights and momentum are held; a step's peak is at least all gradients at once.
    assert 3 * weights <= peak_memory(contestant, torch.device("cpu")) <= 4 * weights


def test_the_growth_is_drawn(tmp_path):
    settings = [Settings("paper/mlp", batch_size=size, steps=2, warmup=1) for size in (4, 8)]
    tables = {s.batch_size: measure(s, [Variant("fa")]) for s in settings}
    growth_figure(tables, "batch size", "test", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
