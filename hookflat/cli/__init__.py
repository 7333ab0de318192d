"""The command line: thin. torch is imported by the commands that need it, not here."""

from hookflat import collector
from hookflat.cli.app import app
from hookflat.cli.beginning import init, new_plugin
from hookflat.cli.inspecting import plugins, recipes, show
from hookflat.cli.running import evaluate, rescale, run
from hookflat.cli.sharing import card, push
from hookflat.cli.studying import compare, report, study
from hookflat.cli.watching import watch

__all__ = [
    "app",
    "card",
    "compare",
    "evaluate",
    "init",
    "main",
    "new_plugin",
    "plugins",
    "push",
    "recipes",
    "report",
    "rescale",
    "run",
    "show",
    "study",
    "watch",
]


def main() -> None:
    """Run the command line; errors of the user's end with exit code 2, a failed training with 3."""
    collector.be_patient()  # whatever goes on for long ends it
    try:
        app()
    finally:
        collector.leave_the_rest()
