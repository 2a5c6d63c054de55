"""How figures look: colours told apart by colour-blind eyes, angles from 0 to 90, titles in words."""

import itertools
import math

import pytest
import torch
from matplotlib.colors import to_rgb
from reporting.test_results import write_run

from pfa_convert.reporting.accuracy_figure import accuracy_figure, looks_of
from pfa_convert.reporting.alignment_figure import alignment_figure
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.option_figures import density_figure
from pfa_convert.reporting.reading import read_runs
from pfa_convert.reporting.result_figures import pictures
from pfa_convert.reporting.style import (
    COLOURS,
    angle_axis,
    colour_of,
    in_words,
    marker_of,
    name_some,
    shades_of,
    signed,
)
from pfa_convert.rules import RULES

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
EYES = {
    "normal": torch.eye(3, dtype=torch.float64),
    "protanopia": torch.tensor(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        dtype=torch.float64,
    ),
    "deuteranopia": torch.tensor(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        dtype=torch.float64,
    ),
}
XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)


def lab(colour, eye):
    """CIELAB of a colour as an eye sees it (CIE 1976, D65)."""
    rgb = torch.tensor(to_rgb(colour), dtype=torch.float64)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x = XYZ @ (EYES[eye] @ linear).clamp(0, 1) / torch.tensor([0.95047, 1, 1.08883], dtype=torch.float64)
    f = torch.where(x > 0.008856, x ** (1 / 3), 7.787 * x + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_the_colours_of_any_two_rules_can_be_told_apart(eye):
    seen = {rule: lab(colour, eye) for rule, colour in COLOURS.items()}
    nearest = min(float((a - b).norm()) for a, b in itertools.combinations(seen.values(), 2))
    # 2.3 is a just noticeable difference; thin lines need several of them.
    assert nearest > 15


def test_every_packaged_rule_has_a_colour_and_a_marker_of_its_own():
    packaged = [name for name in RULES if RULES[name].__module__.startswith("pfa_convert.rules")]
    assert set(packaged) == set(COLOURS)
    assert len({marker_of(rule) for rule in packaged}) == len(packaged)
    assert colour_of("somebody's") == colour_of("somebody's")


def test_shades_end_at_the_rules_own_colour_and_fall_in_lightness():
    shades = shades_of("pfa", 5)
    assert shades[-1] == pytest.approx(to_rgb(colour_of("pfa")))
    lightness = [float(lab(shade, "normal")[0]) for shade in shades]
    assert lightness == sorted(lightness, reverse=True) and lightness[0] < 90


@pytest.mark.parametrize(
    ("angles", "top"), [([1.0, 20.0], 90), ([90.4], 90), ([20.0, 120.0], 123.6), ([math.nan], 90)]
)
def test_angles_have_an_axis_from_0_to_90_unless_one_is_obtuse(angles, top):
    figure, panel = pyplot_without_display().subplots()
    angle_axis(panel, angles)
    assert panel.get_ylim() == (0, pytest.approx(top))
    pyplot_without_display().close(figure)


def test_titles_say_what_differs_in_words():
    expansions = {f"pfa-{e}": ("pfa", {"expansion": e, "law": "uniform"}) for e in (1, 10)}
    assert in_words(expansions) == {"pfa-1": "expansion 1", "pfa-10": "expansion 10"}
    assert in_words({"bp": ("bp", {}), "pfa": ("pfa", {"expansion": 10})}) == {"bp": "bp", "pfa": "pfa"}
    strategies = {"a": ("pfa", {}), "b": ("pfa", {"strategy": "explicit"}), "c": ("kp", {})}
    assert in_words(strategies) == {"a": "pfa", "b": "pfa, strategy explicit", "c": "kp"}
    assert in_words({"fa": ("fa", {}), "fa (lr=2)": ("fa", {})}) == {"fa": "fa", "fa (lr=2)": "fa (lr=2)"}
    schedules = {"pfa-o": ("pfa-o", {}), "pfa": ("pfa", {}), "pfa-decay": ("pfa", {})}
    assert list(in_words(schedules).values()) == ["pfa-o", "pfa", "pfa, decay"]


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "+0.00"), (-0.006, "-0.01"), (0.0, "+0.00"), (2, "+2.00")]
)
def test_no_negative_zero(value, text):
    assert signed(value) == text


def test_the_last_accuracy_of_each_seed_is_drawn_with_mean_and_spread(tmp_path):
    for rule, finals in {"bp": [98.0, 98.4], "fa": [97.0, 97.2]}.items():
        for seed, final in enumerate(finals):
            write_run(tmp_path / rule / f"{seed}", f"mnist-mlp-{rule}", seed, final)
    figure = accuracy_figure(read_runs([tmp_path])["mnist-mlp"])
    ends = figure.axes[1]
    assert [tick.get_text() for tick in ends.get_yticklabels()] == ["bp", "fa"]
    drawn = [list(line.get_xdata()) for line in ends.lines if line.get_marker() == "."]
    assert drawn == [[98.0, 98.4], [97.0, 97.2]]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["bp", "fa", "one seed", "± 1 standard deviation", "the paper's mean"]
    assert to_rgb(figure.axes[0].lines[0].get_color()) == to_rgb(colour_of("bp"))


def test_variants_of_one_rule_differ_in_dashes_beside_other_rules_and_in_shade_alone(tmp_path):
    for name in ("kp", "pfa", "pfa-explicit"):
        write_run(tmp_path / name, f"mnist-literal-{name}", 0, 98.0)
    variants = read_runs([tmp_path])["mnist-literal"]
    looks = looks_of(variants)
    assert looks["pfa"]["color"] == looks["pfa-explicit"]["color"] == colour_of("pfa")
    assert len({look["linestyle"] for look in (looks["pfa"], looks["pfa-explicit"])} - {"--"}) == 2
    alone = looks_of({label: variant for label, variant in variants.items() if label != "kp"})
    assert alone["pfa"]["color"] != alone["pfa-explicit"]["color"]


@pytest.mark.parametrize(("count", "most"), [(1, 5), (3, 5), (20, 12), (26, 32), (100, 32)])
def test_an_axis_names_its_first_and_its_last_layer(count, most):
    places, names = name_some([f"layer{i}" for i in range(count)], most)
    assert (places[0], places[-1]) == (0, count - 1) and len(set(places)) == len(places) <= most + 1
    assert names == [f"layer{i}" for i in places]


def test_deep_networks_get_heat_maps_by_layer_and_epoch(tmp_path):
    write_run(tmp_path / "pfa", "digits-mlp-pfa", 0, 98.0, sites=[f"layer{i}" for i in range(20)])
    variants = read_runs([tmp_path])["digits-mlp"]
    figure = alignment_figure(variants)
    angles, ratios = figure.axes[:2]
    epochs = variants["pfa"].recipe.train.epochs
    assert angles.images[0].get_array().shape == (20, epochs)
    assert angles.images[0].get_array().tolist()[3] == [20.0] * epochs
    assert angles.images[0].get_clim() == (0, 90)
    assert ratios.images[0].get_array().tolist()[0] == [0.0] * epochs  # |F| = |W|
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[3].get_yticklabels()] == ["0.5", "1", "2"]
    (caption,) = [p.caption for p in pictures("digits-mlp", variants) if p.name.endswith("alignment")]
    assert caption.endswith("a row for each layer.")


def test_layers_are_named_where_they_are_few(tmp_path):
    write_run(tmp_path / "pfa", "mnist-mlp-pfa", 0, 98.0)
    figure = alignment_figure(read_runs([tmp_path])["mnist-mlp"])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["layer 1 (input)", "layer 3", "layer 5 (output)", "the paper's seed 0, at the end"]
    assert figure.axes[0].get_ylim() == (0, 90)


def test_backpropagations_band_is_beside_sparse_feedback(tmp_path):
    for seed, final in enumerate([98.0, 98.4]):
        write_run(tmp_path / f"bp-{seed}", "mnist-mlp-bp", seed, final)
        for density in ("1", "0.3"):
            name = f"mnist-sparse-fa-{density}"
            write_run(tmp_path / f"{name}-{seed}", name, seed, final - 1)
    variants = read_runs([tmp_path])["mnist-sparse"]
    points = {"fa": {1.0: variants["fa-1"], 0.3: variants["fa-0.3"]}}
    panel = density_figure(points, variants["bp"]).axes[0]
    (band,) = [patch for patch in panel.patches]
    assert (band.get_y(), band.get_height()) == pytest.approx((98.2 - 0.08**0.5, 2 * 0.08**0.5))
    captions = [p.caption for p in pictures("mnist-sparse", variants) if p.name.endswith("density")]
    assert captions[0].endswith("one standard deviation; black: backpropagation.")
