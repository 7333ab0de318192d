"""The application, the options that commands share, and how errors end."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

import hookflat
from hookflat.cli.completing import network_names, option_names, recipe_names
from hookflat.cli.signals import listening, requeue
from hookflat.errors import TrainingFailed, UserError
from hookflat.recipe.tables import as_json
from hookflat.recipe.toml import LONGEST_FOLDER
from hookflat.records.disk import refused
from hookflat.terminal import clipped, printable

app = typer.Typer(
    help="Adversarial training as composable plugins, and the flatness of the robust loss.",
    no_args_is_help=True,
    rich_markup_mode=None,  # importing what draws the boxes takes as long as all the rest of --help
    context_settings={"max_content_width": 120},
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
BUG = (
    f"hookflat: this is an error in hookflat {hookflat.__version__} itself. Please report it as an issue of the "
    "project (form: Bug), with the command and the lines above."
)

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
SetMeasured = Annotated[
    list[str],
    typer.Option(
        "--set", help="One value: eval.eps=4/255 or data.path=FOLDER. Repeatable.", autocompletion=option_names
    ),
]
Plugin = Annotated[list[Path], typer.Option("--plugin", help="A Python file with plugin classes. Repeatable.")]


def _short(place: Path | None) -> Path | None:
    if place is not None and len(str(place)) > LONGEST_FOLDER:
        raise typer.BadParameter(f"{clipped(str(place))} has more than {LONGEST_FOLDER} characters")
    return place


Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the usual folder.", callback=_short)]
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
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # libraries' bars and notices are none of ours
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of the application, with the option --debug; what the user can put right ends in a line.

    Exit code 2 for errors of the user's, 3 for a training or a disk that failed, 128 and its number for a signal, 1 and
    a traceback for hookflat's own.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, debug: bool = False, **options: Any) -> None:
            try:
                with listening():
                    function(**options)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except KeyboardInterrupt as stopped:
                number = getattr(stopped, "number", signal.SIGINT)
                if not getattr(stopped, "said", False) and os.environ.get("RANK", "0") == "0":
                    warn(f"hookflat: stopped by {signal.Signals(number).name}")
                if signal.Signals(number).name == "SIGUSR1":
                    requeue()
                raise typer.Exit(128 + number) from None
            except Exception as error:
                told = error if isinstance(error, UserError | TrainingFailed) else _refused(error)
                if told is None:
                    warn(f"{traceback.format_exc()}\n{BUG}")
                    raise typer.Exit(1) from None
                if debug:
                    warn(traceback.format_exc())
                if not (os.environ.get("RANK", "0") != "0" if told.said is None else told.said):
                    _tell(told)
                raise typer.Exit(3 if isinstance(told, TrainingFailed) else 2) from None

        own = inspect.signature(function, eval_str=True)
        extra = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
        parameters = [*own.parameters.values(), extra]
        run.__dict__["__signature__"] = own.replace(parameters=parameters)  # what typer reads
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return app.command(name)(run)

    return register


def _refused(error: Exception) -> UserError | TrainingFailed | None:
    """A disk that failed a command that trains nothing, or a file that is not to be had."""
    if told := refused(error):
        return TrainingFailed(f"{told}; then the same command again")
    if not isinstance(error, OSError) or not error.filename:
        return None
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{clipped(str(error.filename))}: no file has so long a name")
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
        return UserError(f"{error.filename}: {error.strerror}")
    return None


def _tell(error: UserError | TrainingFailed) -> None:
    """On standard error, which may be a file on the disk that is full."""
    with suppress(OSError):
        warn(f"hookflat: {error}")
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end, and take an exit code of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """To standard error."""
    print(printable(text), file=sys.stderr)


def say(line: str) -> None:
    """One line, as it is."""
    print(printable(line), flush=True)


def say_head(line: str) -> None:
    """One line above others, bold on a terminal."""
    typer.secho(printable(line), bold=True)


def say_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, not wrapped where the output is a file."""
    from rich.table import Table

    from hookflat.display import Terminal

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Terminal(width=None if sys.stdout.isatty() else 240).print(table)


def print_json(facts: Any) -> None:
    """Facts for scripts."""
    print(as_json(facts, indent=2))
