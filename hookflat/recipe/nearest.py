"""What was probably meant by a name that does not exist."""

from __future__ import annotations

import difflib


def nearest(name: str, names: list[str]) -> str:
    """' (did you mean ...?)', or the list of names where nothing is near."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(name) < 100 else []
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (there are: {', '.join(sorted(names))})" if names else " (there are none)"
