"""The benchmark's own arithmetic; how long anything takes is not tested."""

import pytest
import torch
from matplotlib.colors import to_rgb
from torch import nn

from pfa_convert.bench import (
    Candidate,
    Measurement,
    Settings,
    Variant,
    bench_variants,
    measure,
    peak_memory,
)
from pfa_convert.flops import flops_of
from pfa_convert.reporting import figures
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.style import colour_of


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
    gram_product = sum(min(2 * o * o * i, 2 * 256 * o * o) for i, o in layers[1:])
    assert collapsed.flop_ratio == pytest.approx((backpropagation + gram_product) / backpropagation)
    assert bp.flop_ratio == 1 and explicit.flop_ratio > 5


def test_the_floor_counts_attention(monkeypatch):
    def count(fused):
        monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda: fused)
        return Candidate(Settings("timm/vit_tiny_patch16_224"), Variant("bp"), (2, 3, 224, 224)).flops()

    # Fused attention does not keep `q k^T` and multiplies once more in its backward pass: two operations for
    # each of 64 channels, in 12 blocks, for 2 images, 3 heads, 197 queries and as many keys.
    assert count(fused=True) == count(fused=False) + 2 * 64 * 12 * 2 * 3 * 197 * 197


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize(("kind", "positions"), [(nn.Conv2d, 25), (nn.ConvTranspose2d, 100)])
def test_a_grouped_convolution_counts_as_often_as_it_multiplies(kind, positions, groups, learns):
    layer = kind(32, 64, 3, stride=2, padding=1, groups=groups).requires_grad_(learns)
    x = torch.randn(2, 32, 10, 10, requires_grad=True)
    # Two operations for each weight at each of the smaller side's positions; once in the forward, once for
    # each gradient.
    once = 2 * 2 * positions * layer.weight.numel()
    assert flops_of(lambda: layer(x).sum().backward()) == (3 if learns else 2) * once


def test_memory_counts_weights_gradients_momentum_and_activations():
    candidate = Candidate(Settings("paper/mlp", batch_size=64), Variant("bp"), (64, 1, 28, 28))
    candidate.step()
    weights = 4 * sum(p.numel() for p in candidate.model.parameters())
    # Weights and momentum are held; a step's peak is at least all gradients at once.
    assert 3 * weights <= peak_memory(candidate, torch.device("cpu")) <= 4 * weights


def measurement(variant, ratio, memory):
    low, high = ratio - 0.1, ratio + 0.2
    return Measurement(variant, 1.0, ratio, low, high, 1.0, memory, 1.0)


def test_the_growth_is_drawn_as_it_was_measured(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "write", lambda figure, path: drawn.append(figure))
    tables = {
        4: [measurement("bp", 1, 1), measurement("fa", 1.5, 1.2), measurement("pfa fused", 3.0, 2.0)],
        8: [measurement("bp", 1, 1), measurement("fa", 1.2, 1.1), measurement("pfa fused", 2.0, 1.5)],
    }
    figures.growth_figure(tables, "batch size", "test", tmp_path / "growth.png")
    time, memory = drawn[0].axes
    bars = dict(zip(["fa", "pfa fused"], time.containers, strict=True))
    for variant, ratios, shares in (("fa", [1.5, 1.2], [1.2, 1.1]), ("pfa fused", [3.0, 2.0], [2.0, 1.5])):
        line, _, (quartiles,) = bars[variant].lines
        assert list(line.get_ydata()) == ratios
        ends = [(segment[0][1], segment[1][1]) for segment in quartiles.get_segments()]
        assert ends == [(pytest.approx(ratio - 0.1), pytest.approx(ratio + 0.2)) for ratio in ratios]
        assert to_rgb(line.get_color()) == to_rgb(colour_of(variant.partition(" ")[0]))
        assert shares in [list(other.get_ydata()) for other in memory.lines]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["fa", "pfa fused"]
    assert [tick.get_text() for tick in time.get_xticklabels()] == ["4", "8"]
    pyplot_without_display().close(drawn[0])
