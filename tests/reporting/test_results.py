"""The report: its numbers against ones worked out here, and its files."""

import io
import json
import math
import re
import statistics
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from pfa_convert import UserError, load_recipe
from pfa_convert.recipe_files import packaged_recipes
from pfa_convert.reporting.accuracy_figure import accuracy_figure
from pfa_convert.reporting.alignment_figure import alignment_figure
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.page import write_report
from pfa_convert.reporting.reading import read_runs
from pfa_convert.reporting.result_figures import pictures
from pfa_convert.reporting.result_tables import print_results
from pfa_convert.reporting.results import paper
from pfa_convert.reporting.rows import rows

FINALS = {"bp": [98.3, 98.4, 98.5], "pfa": [98.30, 98.41, 98.34], "fa": [97.0, 97.2]}


def write_run(folder, name, seed, final, epochs=None, settings=(), sites=("1", "3", "5")):
    """A run's folder as the trainer leaves it, with made-up figures for all or the first of its epochs."""
    recipe = load_recipe(name, settings)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    made = {"seed": seed, "torch": "2.14.1", "device": "cpu", "date": f"2026-01-0{seed + 1}T10:00:00+00:00"}
    (folder / "environment.json").write_text(json.dumps(made))
    lines = []
    length = recipe.train.epochs
    for epoch in range(1, (epochs or length) + 1):
        accuracy = final - (length - epoch)
        angles = {site: {"angle_deg": 20.0 + seed, "norm_ratio": 1.0} for site in sites}
        lines.append({"epoch": epoch, "test_top1": accuracy, "seconds": 2.0, "alignment": angles})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot_without_display().close("all")


@pytest.fixture
def runs(tmp_path):
    for rule, finals in FINALS.items():
        for seed, final in enumerate(finals):
            write_run(
                tmp_path / "runs" / f"mnist-mlp-{rule}" / f"seed-{seed}", f"mnist-mlp-{rule}", seed, final
            )
    write_run(tmp_path / "runs" / "mnist-mlp-fa" / "seed-2", "mnist-mlp-fa", 2, 97.4, epochs=39)
    return tmp_path / "runs"


def test_the_table_is_what_statistics_says(runs):
    table = {row.recipe: row for row in rows(read_runs([runs])["mnist-mlp"])}
    for rule, finals in FINALS.items():
        row = table[f"mnist-mlp-{rule}"]
        assert row.seeds == len(finals)
        assert row.mean == pytest.approx(statistics.mean(finals))
        assert row.std == pytest.approx(statistics.stdev(finals))
        same_seeds = FINALS["bp"][: len(finals)]
        assert row.gap == pytest.approx(row.mean - statistics.mean(same_seeds))
        published = load_recipe(f"mnist-mlp-{rule}").expect
        assert (row.paper_mean, row.paper_std) == (published.mean, published.std)
        assert row.paper_gap == pytest.approx(published.mean - 98.38)
        assert row.difference == pytest.approx(row.mean - published.mean)
        error = math.hypot(published.std / math.sqrt(5), row.std / math.sqrt(len(finals)))
        assert row.within_noise == (abs(row.difference) <= 2 * error)
        assert row.seconds == 80
    assert table["mnist-mlp-bp"].gap_error is None
    paired = [ours - bps for ours, bps in zip(FINALS["pfa"], FINALS["bp"], strict=True)]
    assert table["mnist-mlp-pfa"].gap_error == pytest.approx(statistics.stdev(paired) / math.sqrt(3))
    paired = [ours - bps for ours, bps in zip(FINALS["fa"], FINALS["bp"][:2], strict=True)]
    assert table["mnist-mlp-fa"].gap_error == pytest.approx(statistics.stdev(paired) / math.sqrt(2))
    assert table["mnist-mlp-pfa"].within_noise and not table["mnist-mlp-fa"].within_noise


def test_the_alignment_before_the_first_epoch_comes_first(runs, tmp_path):
    log = runs / "mnist-mlp-pfa" / "seed-0" / "log.jsonl"
    untrained = {site: {"angle_deg": 90.0, "norm_ratio": 0.7} for site in ("1", "3", "5")}
    log.write_text(json.dumps({"epoch": 0, "alignment": untrained}) + "\n" + log.read_text())
    variant = read_runs([runs])["mnist-mlp"]["pfa"]
    first, second = variant.runs[:2]
    assert first.finished and first.accuracies[-3:] == [96.3, 97.3, 98.3]
    assert (first.first_aligned, second.first_aligned) == (0, 1)
    assert first.by_site("angle_deg")["3"] == [90.0, *[20.0] * 40]
    assert variant.at_end("angle_deg")["3"] == (21.0, 1.0)
    panels = alignment_figure({"pfa": variant}).axes
    assert list(panels[0].lines[0].get_xdata()) == list(range(1, 41))  # the other seeds begin at epoch 1
    panels = alignment_figure({"pfa": replace(variant, runs=(first,))}).axes
    assert list(panels[0].lines[0].get_xdata()) == list(range(41))
    assert list(panels[1].lines[0].get_ydata()) == [0.7, *[1.0] * 40]


def test_a_run_that_is_not_finished_counts_for_curves_only(runs):
    variant = read_runs([runs])["mnist-mlp"]["fa"]
    assert [run.finished for run in variant.runs] == [True, True, False]
    mean, std = variant.epochs(run.accuracies for run in variant.runs)[-1]
    assert mean == pytest.approx(statistics.mean([96.0, 96.2, 96.4]))
    assert std == pytest.approx(statistics.stdev([96.0, 96.2, 96.4]))
    assert variant.at_end("angle_deg")["5"] == (20.5, pytest.approx(statistics.stdev([20, 21])))


def test_the_papers_numbers_in_recipes_and_in_the_report_agree():
    expected = {name: load_recipe(name).expect for name in packaged_recipes()}
    published = {
        f"{experiment}-{rule}": numbers
        for experiment, rules in paper().items()
        if experiment != "source"
        for rule, numbers in rules.items()
    }
    assert {name for name, expect in expected.items() if expect} == set(published)
    for name, numbers in published.items():
        assert (numbers["final_mean"], numbers["final_std"]) == (expected[name].mean, expected[name].std)


def test_the_report_is_complete_and_needs_nothing_else(runs, tmp_path):
    command = "pfa-convert report <runs>"
    written = {path.name for path in write_report(read_runs([runs]), tmp_path / "report", command)}
    assert written == {
        *(f"mnist-mlp-{what}.{kind}" for what in ("accuracy", "alignment") for kind in ("png", "svg")),
        *("report.md", "index.html", "results.json"),
    }
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| mnist-mlp-bp | 3 | 98.40 ± 0.10 | 98.40 ± 0.10 | +0.00 | 98.38 ± 0.03 | +0.00 | +0.02 | yes |"
        in text
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page and "<link" not in page and "<script" not in page
    told = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert told["report"] == "pfa-convert report &lt;runs&gt;"
    assert told["runs"] == "9, 2026-01-01 to 2026-01-03"
    assert (told["versions"], told["device"]) == ("PyTorch 2.14.1", "cpu")
    assert page.count("<table>") == page.count('<div class="wide"><table>')
    first = (tmp_path / "report" / "mnist-mlp-accuracy.svg").read_bytes()
    write_report(read_runs([runs]), tmp_path / "again")
    assert (tmp_path / "again" / "mnist-mlp-accuracy.svg").read_bytes() == first


def test_densities_and_expansions_have_their_own_figures(tmp_path):
    for density in ("1", "0.3"):
        for seed in (0, 1):
            name = f"mnist-sparse-pfa-{density}"
            write_run(tmp_path / "runs" / name / f"seed-{seed}", name, seed, 98 + float(density))
    for expansion in ("1", "10"):
        name = f"mnist-expansion-pfa-{expansion}"
        write_run(tmp_path / "runs" / name / "seed-0", name, 0, 98.0)
    written = {path.name for path in write_report(read_runs([tmp_path / "runs"]), tmp_path / "report")}
    assert {"mnist-sparse-density.png", "mnist-expansion-expansion.svg"} <= written


def test_an_experiment_without_backpropagation_is_compared_with_the_same_task_of_another(tmp_path):
    for seed, final in enumerate([98.0, 98.2]):
        write_run(tmp_path / "a" / f"bp-{seed}", "mnist-mlp-bp", seed, final)
        write_run(tmp_path / "a" / f"fa-{seed}", "mnist-sparse-fa-0.3", seed, final - 1 - seed)
        write_run(tmp_path / "b" / f"pfa-{seed}", "digits-mlp-pfa", seed, final)
    experiments = read_runs([tmp_path / "a", tmp_path / "b"])
    assert {name: list(variants) for name, variants in experiments.items()} == {
        "digits-mlp": ["pfa"],
        "mnist-sparse": ["bp", "fa-0.3"],
    }
    row = rows(experiments["mnist-sparse"])[1]
    assert row.gap == pytest.approx(-1.5) and row.gap_error == pytest.approx(0.5)


def test_the_best_epoch_counts_where_it_is_not_the_last(tmp_path):
    write_run(tmp_path / "seed-0", "mnist-sparse-fa-0.3", 0, 97.0)
    log = tmp_path / "seed-0" / "log.jsonl"
    log.write_text(log.read_text().replace('"test_top1": 96.0', '"test_top1": 97.5'))
    (row,) = rows(read_runs([tmp_path])["mnist-sparse"])
    assert (row.mean, row.best_mean) == (97.0, 97.5)


def test_first_decays_have_a_figure_by_strength_and_length(tmp_path):
    for name in ("0.003-1", "0.03-1", "0.03-2"):
        write_run(tmp_path / "runs" / name, f"mnist-forgetting-pfa-{name}", 0, 98.0)
    variants = read_runs([tmp_path / "runs"])["mnist-forgetting"]
    (picture,) = [p for p in pictures("mnist-forgetting", variants) if p.name.endswith("forgetting")]
    lines = {line.get_label(): list(line.get_xdata()) for line in picture.figure.axes[0].lines}
    assert lines == {"pfa, decay for 1 epoch": [0.003, 0.03], "pfa, decay for 2 epochs": [0.03]}
    assert list(picture.figure.axes[1].lines[0].get_ydata()) == [98.0, 98.0]


def test_captions_promise_only_what_is_drawn(runs, tmp_path):
    write_run(tmp_path / "more" / "seed-0", "digits-mlp-pfa", 0, 98.0)
    experiments = read_runs([runs, tmp_path / "more"])
    captions = {p.name: p.caption for name, v in experiments.items() for p in pictures(name, v)}
    assert captions["digits-mlp-accuracy"] == "Accuracy by epoch."
    assert captions["digits-mlp-alignment"].endswith("a line for each layer.")
    assert captions["mnist-mlp-accuracy"].startswith("Accuracy by epoch, and after the last one; mean")
    assert captions["mnist-mlp-accuracy"].endswith(
        "; mean over the seeds, band of one standard deviation; dashed, the paper's."
    )
    assert captions["mnist-mlp-alignment"].endswith("crosses at the end are those of the paper's seed 0.")


def test_variants_come_by_rule_and_then_by_number(tmp_path):
    finals = {
        "fa-0.05": 97.0,
        "fa-1": 97.5,
        "pfa-1": 98.4,
        "pfa-0.05": 98.0,
        "pfa-0.3": 98.2,
        "pfa-0.17": 97.2,
    }
    for label, final in finals.items():
        write_run(tmp_path / label / "seed-0", f"mnist-sparse-{label}", 0, final)
    variants = read_runs([tmp_path])["mnist-sparse"]
    assert list(variants) == ["pfa-0.05", "pfa-0.17", "pfa-0.3", "pfa-1", "fa-0.05", "fa-1"]


def test_a_narrow_terminal_shows_names_whole_and_no_empty_column(runs, tmp_path):
    write_run(runs / "mnist-mlp-pfa-o" / "seed-0", "mnist-mlp-pfa-o", 0, 98.4)
    write_run(tmp_path / "more" / "seed-0", "mnist-sparse-pfa-0.05", 0, 98.0)
    published, unpublished = io.StringIO(), io.StringIO()
    print_results(Console(file=published, width=80), read_runs([runs]))
    print_results(Console(file=unpublished, width=80), read_runs([tmp_path / "more"]))
    assert "mnist-mlp-pfa " in published.getvalue() and "…" not in published.getvalue()
    assert "paper" in published.getvalue()
    assert unpublished.getvalue().split()[-3:] == ["mnist-sparse-pfa-0.05", "1", "98.00"]
    assert "paper" not in unpublished.getvalue()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_runs([tmp_path])


def test_a_layer_without_an_angle_has_no_spread(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed-{seed}", "mnist-mlp-pfa", seed, 98.0)
        log = tmp_path / f"seed-{seed}" / "log.jsonl"
        log.write_text(log.read_text().replace(f'"angle_deg": {20.0 + seed}', '"angle_deg": NaN', 1))
    write_report(read_runs([tmp_path]), tmp_path / "report", "pfa-convert report")


def test_runs_of_other_lengths_are_not_compared(tmp_path):
    write_run(tmp_path / "bp", "mnist-mlp-bp", 0, 98.0, settings=["train.epochs=5"])
    write_run(tmp_path / "pfa", "mnist-mlp-pfa", 0, 98.0)
    table = {row.recipe: row for row in rows(read_runs([tmp_path])["mnist-mlp"])}
    assert table["mnist-mlp-pfa"].gap is None
    assert table["mnist-mlp-bp"].gap == 0


def test_the_figure_shows_the_runs_of_the_table_after_the_last_epoch(runs):
    figure = accuracy_figure(read_runs([runs])["mnist-mlp"])
    (numbers,) = figure.axes[1].child_axes
    words = [text.get_text() for text in numbers.get_yticklabels()]
    mean, std = statistics.mean(FINALS["fa"]), statistics.stdev(FINALS["fa"])
    assert f"{mean:.2f} ± {std:.2f}" in words


def test_a_layer_has_one_colour_in_networks_of_several_depths(tmp_path):
    write_run(tmp_path / "fa", "mnist-mlp-fa", 0, 98.0, settings=["model.hidden=[16]"], sites=("1", "3"))
    write_run(tmp_path / "pfa", "mnist-mlp-pfa", 0, 98.0)
    figure = alignment_figure(read_runs([tmp_path])["mnist-mlp"])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    named = dict(zip(names, (line.get_color() for line in figure.legends[0].get_lines()), strict=True))
    columns = [list(dict.fromkeys(line.get_color() for line in axes.get_lines())) for axes in figure.axes[:2]]
    assert sorted(map(len, columns)) == [2, 3]
    for colours in columns:
        assert colours == [named[f"layer {site}"] for site in ("1", "3", "5")][: len(colours)]
