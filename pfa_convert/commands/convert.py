"""`pfa-convert MODEL`: convert, check the forward, report."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.core import ParameterSource

from pfa_convert.commands.completion import complete_model, complete_recipe, complete_rule, complete_site
from pfa_convert.commands.outputs import refuse_unwritable
from pfa_convert.commands.values import key_values
from pfa_convert.errors import UserError
from pfa_convert.models import resolve
from pfa_convert.reporting.console import console, print_conversion, rounding_allowed
from pfa_convert.reporting.progress import busy

OF_A_CONVERSION = (
    *("rule", "expansion", "options", "overrides", "recipe", "num_classes", "seed", "unroll", "strict"),
)


@click.command("convert")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--rule",
    help="The rule of every site that no override names; pfa by default.",
    shell_complete=complete_rule,
)
@click.option("--expansion", type=float, help="Middle neurons per output neuron, for the rule pfa.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Another option of the rule.")
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="PATTERN=RULE",
    help="A rule for some sites.",
    shell_complete=complete_site,
)
@click.option(
    "--recipe",
    help="Take the conversion from a recipe; options here override it.",
    shell_complete=complete_recipe,
)
@click.option("--num-classes", type=click.IntRange(min=1), help="Outputs of the classifier.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="What feedback weights are drawn from.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the converted model to this file.")
@click.option(
    "--unroll", is_flag=True, help="Run LSTM, GRU and RNN layers step by step, so that they are sites too."
)
@click.option("--strict", is_flag=True, help="Refuse a model in which a learned weight would get no rule.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert_command(
    model: str,
    rule: str | None,
    expansion: float | None,
    options: tuple[str, ...],
    overrides: tuple[str, ...],
    recipe: str | None,
    num_classes: int | None,
    seed: int,
    output: Path | None,
    unroll: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Convert MODEL, check that its forward is unchanged, and report every site.

    MODEL is a name of torchvision or timm (`resnet50`, `timm/resnet50`), `paper/resnet20`, `paper/mlp`,
    `package.module:factory`, or a file that `--output` wrote.

    \b
    pfa-convert resnet50 --rule pfa --expansion 4
    pfa-convert timm/vit_tiny_patch16_224 --rule fa --override 'head=bp' --output vit.safetensors
    """
    refuse_unwritable(output, "--output", "model.safetensors")
    resolved = None if model.endswith(".safetensors") else resolve(model)
    if resolved is None:
        _refuse_options_of_a_file(model)
    chosen = key_values(options, "--option") | ({} if expansion is None else {"expansion": expansion})
    listed = [
        {"match": key, "rule": str(value)} for key, value in key_values(overrides, "--override").items()
    ]

    from pfa_convert.commands.conversion import convert_by_name, read_conversion
    from pfa_convert.saving import save

    with busy(console, f"converting {model}"):
        if resolved is None:
            done = read_conversion(Path(model))
        else:
            done = convert_by_name(resolved, num_classes, recipe, rule, chosen, listed, seed, strict, unroll)
        if output is not None:
            save(done.converted, output, done.name, num_classes=num_classes)
    report = done.converted.conversion
    if as_json:
        click.echo(json.dumps({**done.summary, **report.to_dict()}, indent=1))
    else:
        print_conversion(console, done.summary, report)
        if output is not None:
            console.print(f"written to {output}", markup=False)
    difference = done.summary["forward_max_difference"]
    if difference is not None and not difference <= rounding_allowed(report):
        raise click.exceptions.Exit(1)


def _refuse_options_of_a_file(path: str) -> None:
    context = click.get_current_context()
    for option in OF_A_CONVERSION:
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            name = next(p.opts[0] for p in context.command.params if p.name == option)
            raise UserError(f"{path} holds its own conversion: name the model to convert anew", where=name)
