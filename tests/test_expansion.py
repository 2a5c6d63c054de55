"""The draws by expansion, against the theory of random matrices and against a literal `B`."""

import json
import math
from statistics import fmean

import pytest
import torch
from click.testing import CliRunner

from pfa_convert import UserError
from pfa_convert.cli import cli
from pfa_convert.expansion import draw_expansion, marchenko_pastur, marchenko_pastur_edges


@pytest.mark.parametrize("expansion", [1, 2, 10, 50])
def test_the_mean_angle_is_that_of_theory(expansion):
    found = draw_expansion(expansion, outputs=96, inputs=96, draws=20)
    # One draw varies by 0.4 degrees at expansion 1 and less above; the mean of 20 by a tenth.
    assert fmean(found.angles_deg) == pytest.approx(math.degrees(math.atan(expansion**-0.5)), abs=0.4)
    assert found.expected_deg == pytest.approx(math.degrees(math.atan2(1, math.sqrt(expansion))))


@pytest.mark.parametrize("expansion", [1.5, 4, 10])
def test_the_eigenvalues_are_distributed_as_marchenko_and_pastur_say(expansion):
    found = torch.tensor(draw_expansion(expansion, outputs=96, inputs=1, draws=20).eigenvalues)
    lowest, highest = marchenko_pastur_edges(expansion)
    places = torch.linspace(lowest, highest, 20_001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(marchenko_pastur(places, expansion), places)
    drawn = torch.searchsorted(found.double(), places[1:]) / len(found)
    # Eigenvalues repel each other: the largest distance is far below that of independent draws, 0.03.
    assert (drawn - cumulative).abs().max() < 0.02


@pytest.mark.parametrize("expansion", [1.5, 4.0, 10.0])
def test_the_density_has_the_moments_of_the_law(expansion):
    lowest, highest = marchenko_pastur_edges(expansion)
    x = torch.linspace(lowest, highest, 200_001, dtype=torch.float64)
    density = marchenko_pastur(x, expansion)
    moments = [torch.trapezoid(density * x**power, x).item() for power in range(3)]
    assert moments == pytest.approx([1, 1, 1 + 1 / expansion], abs=1e-4)
    outside = torch.tensor([lowest - 0.01, highest + 0.01, 100.0], dtype=torch.float64)
    assert marchenko_pastur(outside, expansion).tolist() == [0, 0, 0]


def test_with_fewer_middle_neurons_than_outputs_the_rest_of_the_eigenvalues_is_zero():
    found = draw_expansion(0.25, outputs=40, inputs=8, draws=3)
    assert sum(abs(value) < 1e-5 for value in found.eigenvalues) == 3 * 30
    assert len(found.eigenvalues) == 3 * 40 and len(found.angles_deg) == 3


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    one, same, other = (draw_expansion(3, outputs=8, inputs=8, draws=2, seed=s) for s in (0, 0, 1))
    assert one == same != other


def test_the_command_shows_the_table_and_writes_the_figure(tmp_path):
    sizes = ["--outputs", "12", "--inputs", "8", "--draws", "4"]
    picture = tmp_path / "expansion.png"
    result = CliRunner().invoke(cli, ["expansion", "1", "10", *sizes, "--plot", str(picture)])
    assert result.exit_code == 0 and "17.55" in result.output and picture.stat().st_size > 10_000
    found = json.loads(CliRunner().invoke(cli, ["expansion", "2", *sizes, "--json"]).output)
    assert [len(found[0][key]) for key in ("angles_deg", "eigenvalues")] == [4, 48]


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(UserError, match="draws: must be at least 1, given 0"):
        draw_expansion(2, outputs=4, inputs=4, draws=0)
    with pytest.raises(UserError, match="expansion"):
        draw_expansion(-1, outputs=4, inputs=4, draws=1)
