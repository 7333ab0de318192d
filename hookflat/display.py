"""Rich on a terminal: what is printed in colours, as tables and as bars. Imported where something is."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from hookflat.terminal import printable


class Terminal(Console):
    """Rich's console, to which no text brings control characters, colours or pictures of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What printing a text, or a cell of a table, goes through."""
        return super().render_str(printable(text), **options)
