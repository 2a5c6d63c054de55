"""The command line: parse, call, print.

The modules of the commands import what needs PyTorch only when a command runs: help, lists, mistakes and
completion answer at once.
"""

from __future__ import annotations

import difflib
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from pfa_convert.commands.bench import bench_command
from pfa_convert.commands.completion import model_names
from pfa_convert.commands.convert import convert_command
from pfa_convert.commands.expansion import expansion_command
from pfa_convert.commands.inspect import inspect_command
from pfa_convert.commands.lists import recipes_command, rules_command
from pfa_convert.commands.models import models_command
from pfa_convert.commands.reproduce import report_command, reproduce_command
from pfa_convert.commands.train import train_command
from pfa_convert.errors import UserError, machine_failure


class ConvertByDefault(click.Group):
    """A group whose first argument may also be a model: `pfa-convert resnet50` is `convert resnet50`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the named subcommand, or `convert` for anything that is none."""
        if args and args[0] not in self.commands:
            _refuse_misspelt(args[0], list(self.commands))
            args = ["convert", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let `pfa-convert --rule pfa resnet50` through as well; without arguments, show the help."""
        if not args:
            args = ["--help"]
        elif args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer models beside the commands, once something is typed: there are over a thousand."""
        found = super().shell_complete(ctx, incomplete)
        names = model_names() if incomplete and not incomplete.startswith("-") else []
        return [*found, *(CompletionItem(name) for name in names if name.startswith(incomplete))]


def _refuse_misspelt(name: str, commands: list[str]) -> None:
    """Raise UserError for what is nearly a command and no model."""
    if any(sign in name for sign in "/:.") or not difflib.get_close_matches(name, commands, cutoff=0.7):
        return
    from pfa_convert.models import available

    if not any(model.endswith(f"/{name}") for model in available()):
        raise UserError(f"unknown command or model {name!r}", given=name, choices=commands)


@click.group(cls=ConvertByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfa-convert")
def cli() -> None:
    """Send the error of any torchvision or timm model through feedback weights.

    \b
    pfa-convert resnet50 --rule pfa
    pfa-convert vit_tiny_patch16_224 --rule fa --override 'head=bp' --json
    pfa-convert train digits-mlp-pfa
    """


for command in (
    convert_command,
    train_command,
    reproduce_command,
    report_command,
    inspect_command,
    expansion_command,
    bench_command,
    models_command,
    rules_command,
    recipes_command,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line: exit code 2 and one line for a mistake of the user's, 130 when interrupted."""
    try:
        code = cli.main(standalone_mode=False) or 0
    except UserError as error:
        click.echo(f"pfa-convert: {error}", err=True)
        code = 2
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"pfa-convert: {error.format_message()}", err=True)
        code = 2
    except click.Abort:
        code = 130
    except OSError as error:  # a disk that is full or gone
        click.echo(f"pfa-convert: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = 2
    except (MemoryError, RuntimeError) as error:
        if (happened := machine_failure(error)) is None:
            raise
        click.echo(f"pfa-convert: {happened}", err=True)
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)
