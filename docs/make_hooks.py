"""Write docs/hooks.md from hookflat/hookspecs.py: `python docs/make_hooks.py`. A test checks that it is up to date."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from hookflat import hookspecs
from hookflat.recipe.catalogue import HOOKS


def page() -> str:
    """The page: the module's text, then every hook with its signature and its text, grouped as in the source."""
    source = inspect.getsource(hookspecs)
    headings = {m.start(): m[1] for m in re.finditer(r"^# --- (.+?) -+$", source, re.M)}
    parts = [
        "# Hooks\n",
        "Made from `hookflat/hookspecs.py` by `python docs/make_hooks.py`.\n",
        inspect.getdoc(hookspecs) or "",
    ]
    for hook in HOOKS:
        position = source.index(f"def {hook}(")
        for start in [s for s in headings if s < position]:
            parts.append(f"\n## {headings.pop(start).capitalize()}")
        signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
        parts += [f"\n### `{hook}{signature}`\n", inspect.getdoc(getattr(hookspecs, hook)) or ""]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("hooks.md").write_text(page(), encoding="utf-8")
