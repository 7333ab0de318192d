"""Commands that hand a network on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hookflat.cli.app import Out, Plugin, command, say
from hookflat.errors import UserError

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A complete run folder.", show_default=False)]


@command()
def card(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="[USER/NAME]", help="Its place on the hub, for the card.")] = "",
    plugin: Plugin = [],  # noqa: B006
    out: Out = None,
) -> None:
    """Write the model card and all that push would send, into the folder hub of the run. Nothing is sent."""
    from hookflat.sharing.bundle import bundle

    place = bundle(run, repo=_checked(repo) if repo else "", plugins=tuple(plugin), folder=out, say=say)
    say(f"{place / 'README.md'}, and beside it: {', '.join(_names(place))}")


@command()
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="On the Hugging Face Hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Where the repository is made anew.")] = False,
    plugin: Plugin = [],  # noqa: B006
    out: Out = None,
) -> None:
    """Send a network to the Hugging Face Hub: weights, recipe, results, card. `eval hub:USER/NAME` fetches it."""
    from hookflat.sharing.bundle import bundle
    from hookflat.sharing.hub import push as send

    place = bundle(run, repo=_checked(repo), plugins=tuple(plugin), folder=out, say=say)
    say(f"{send(place, repo, private=private)}: {', '.join(_names(place))}")


def _checked(repo: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{repo}: should be USER/NAME")
    return repo


def _names(place: Path) -> list[str]:
    files = sorted(f.relative_to(place).as_posix() for f in place.rglob("*") if f.is_file())
    return [name for name in files if name != "README.md"]
