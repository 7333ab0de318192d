"""The command that shows what is going on."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hookflat import collector
from hookflat.cli.app import command, say


@command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Of a run or a study, at work or done.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """A page for this machine alone that follows a run or a study: plan, curves, failures, time left."""
    from hookflat.watching.server import Server
    from hookflat.watching.watched import Watched

    collector.as_usual()
    with Server(Watched(folder), port) as server:
        say(f"{folder} is shown at {server.url}; Ctrl-C ends it")
        if open_:
            webbrowser.open(server.url)
        server.serve_forever()
