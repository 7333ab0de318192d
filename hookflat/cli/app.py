"""The application, the options that commands share, and how errors end."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import hookflat
from hookflat.cli.completing import network_names, option_names, recipe_names
from hookflat.errors import TrainingFailed, UserError

app = typer.Typer(
    help="Adversarial training as composable plugins, and the flatness of the robust loss.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
out = Console(highlight=False, soft_wrap=True)

RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A TOML file, or the name of a shipped recipe.", show_default=False, autocompletion=recipe_names
    ),
]
With = Annotated[
    list[str],
    typer.Option(
        "--with", help="A recipe laid over it, such as scales/cifar10. Repeatable.", autocompletion=recipe_names
    ),
]
Set = Annotated[
    list[str], typer.Option("--set", help="One value: loss.beta=3. Repeatable.", autocompletion=option_names)
]
Plugin = Annotated[list[Path], typer.Option("--plugin", help="A Python file with plugin classes. Repeatable.")]
Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the usual folder.")]
Json = Annotated[bool, typer.Option("--json", help="The same facts for scripts, as JSON on standard output.")]
Arch = Annotated[
    str | None,
    typer.Option(help="Of a file: timm:NAME, or a model plugin such as resnet18.", autocompletion=network_names),
]
DataSet = Annotated[str | None, typer.Option("--data", help="Of a file: a folder of images, a hub id, or digits.")]
Normalize = Annotated[str, typer.Option(help="Of a file without normalisation: none, data, or MEAN,.../STD,...")]
Key = Annotated[str | None, typer.Option(help="Of a file with several sets of weights: which.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"hookflat {hookflat.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Adversarial training as composable plugins, and the flatness of the robust loss."""


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of the application, with the option --debug; what the user can put right ends in a line.

    Exit code 2 for errors of the user's, 3 for a training that failed.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, debug: bool = False, **options: Any) -> None:
            try:
                function(**options)
            except (UserError, TrainingFailed) as error:
                if debug:
                    raise
                if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, TrainingFailed):
                    print(f"hookflat: {error}", file=sys.stderr)
                raise typer.Exit(3 if isinstance(error, TrainingFailed) else 2) from None

        own = inspect.signature(function, eval_str=True)
        extra = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
        parameters = [*own.parameters.values(), extra]
        run.__dict__["__signature__"] = own.replace(parameters=parameters)  # what typer reads
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return app.command(name)(run)

    return register


def say(line: str) -> None:
    """One line, as it is."""
    out.print(line, markup=False)


def wide() -> Console:
    """A console that does not wrap tables where the output is a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def print_json(facts: Any) -> None:
    """Facts for scripts."""
    print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
