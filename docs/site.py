"""What the site adds to the Markdown of the docs: the README in front, the reference of public names, links to code.

Files and folders of the repository that are no pages are linked where the variable HOOKFLAT_SOURCE says, an address to
which a path of the repository can be appended; without it they are named, not linked.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # ty: ignore[unresolved-import]

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Pages that are made here."""
    for name, content in (("index.md", _readme()), ("api.md", _reference())):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave `docs/`."""
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: _link(link, posixpath.join("docs", folder)), markdown)


def _link(link: re.Match[str], folder: str) -> str:
    """A link of a page in `folder` of the repository."""
    image, text, target, anchor = link.groups()
    place = posixpath.normpath(posixpath.join(folder, target))
    page = place.startswith("docs/") and (ROOT / place).is_file() and "/records/" not in place
    if page or not (ROOT / place).exists():
        return link[0]  # mkdocs looks at these itself
    if place == "README.md":
        return f"{image}[{text}]({posixpath.relpath('docs/index.md', folder)}{anchor or ''})"
    source = os.environ.get("HOOKFLAT_SOURCE")
    return f"[{text}]({source.rstrip('/')}/{place}{anchor or ''})" if source else text


def _readme() -> str:
    """The README as the first page: its links begin at the repository's root."""

    def moved(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        place = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        return f"{image}[{text}]({place}{anchor or ''})"

    return LINK.sub(moved, (ROOT / "README.md").read_text(encoding="utf-8"))


def _reference() -> str:
    """Every public name with its docstring, in the order and under the headings of `hookflat/__init__.pyi`."""
    lines = ["# Python", "", "Everything public, imported from `hookflat`. Generated from the docstrings."]
    for line in (ROOT / "hookflat" / "__init__.pyi").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# --- (.+)", line):
            lines += ["", f"## {heading[1].capitalize()}"]
        elif name := re.match(r"from \.([\w.]+) import (\w+)", line):
            lines += ["", f"::: hookflat.{name[1]}.{name[2]}"]
    return "\n".join(lines) + "\n"
