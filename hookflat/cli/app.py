"""The application, the options that commands share, and how errors end."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import hookflat
from hookflat.errors import TrainingFailed, UserError
from hookflat.recipe.tables import as_json
from hookflat.terminal import Terminal, clipped, printable

app = typer.Typer(
    help="Adversarial training as composable plugins, and the flatness of the robust loss.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
BUG = (
    f"hookflat: this is an error in hookflat {hookflat.__version__} itself. Please report it as an issue of the "
    "project (form: Bug), with the command and the lines above."
)
out = Terminal(soft_wrap=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A TOML file, or the name of a shipped recipe.", show_default=False)
]
With = Annotated[list[str], typer.Option("--with", help="A recipe laid over it, such as scales/cifar10. Repeatable.")]
Set = Annotated[list[str], typer.Option("--set", help="One value: loss.beta=3. Repeatable.")]
Plugin = Annotated[list[Path], typer.Option("--plugin", help="A Python file with plugin classes. Repeatable.")]
Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the usual folder.")]
Json = Annotated[bool, typer.Option("--json", help="The same facts for scripts, as JSON on standard output.")]
Arch = Annotated[str | None, typer.Option(help="Of a file: timm:NAME, or a model plugin such as resnet18.")]
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

    Exit code 2 for errors of the user's, 3 for a training that failed, 1 and a traceback for hookflat's own.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, debug: bool = False, **options: Any) -> None:
            try:
                function(**options)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except (UserError, TrainingFailed) as error:
                if debug:
                    warn(traceback.format_exc())
                if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, TrainingFailed):
                    warn(f"hookflat: {error}")
                raise typer.Exit(3 if isinstance(error, TrainingFailed) else 2) from None
            except Exception as error:
                if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                    warn(f"hookflat: {clipped(str(error.filename))}: no file has so long a name")
                    raise typer.Exit(2) from None
                warn(f"{traceback.format_exc()}\n{BUG}")
                raise typer.Exit(1) from None

        own = inspect.signature(function, eval_str=True)
        extra = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
        parameters = [*own.parameters.values(), extra]
        run.__dict__["__signature__"] = own.replace(parameters=parameters)  # what typer reads
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return app.command(name)(run)

    return register


def warn(text: str) -> None:
    """To standard error."""
    print(printable(text), file=sys.stderr)


def say(line: str) -> None:
    """One line, as it is."""
    out.print(line)


def wide() -> Terminal:
    """A console that does not wrap tables where the output is a file."""
    return Terminal(width=None if sys.stdout.isatty() else 240)


def print_json(facts: Any) -> None:
    """Facts for scripts."""
    print(as_json(facts, indent=2))
