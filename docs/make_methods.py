"""Write docs/methods.md from the plugins and recipes: `python docs/make_methods.py`. A test checks it is up to date."""

from __future__ import annotations

import inspect
import re
from itertools import groupby
from pathlib import Path

from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.recipe.options import describe
from hookflat.recipe.shipped import recipes_folder, recipes_naming, title

ORDER = (
    *("loss", "attack", "weight perturbation", "optimizer", "schedule", "regularizer", "activation", "averaging"),
    *("more data", "model selection", "diagnostic", "measure", "model", "data", "figure", "tool"),
)
HEAD = """# Methods

Every plugin that ships, made from the code by `python docs/make_methods.py`; `hookflat plugins NAME` prints the same.
Measured on the embedded digits: [digits.md](digits.md). "Protocol" and "quirk" are those of [protocol.md](protocol.md).

## The rows of Table 1

| row of the paper's Table 1 | recipe |
|---|---|
"""


LEFT_OUT = """
## Left out

Methods of the field that are not here, and why:

- LAP (Lin et al. 2024, arXiv 2405.16262): the weights of its published code move along a step of the optimizer, down
  the loss, where the paper speaks of an adversarial perturbation.
- LBGAT (Cui et al. 2021): confirmed (github.com/dvlab-research/LBGAT), but its teacher trains beside the network by the
  same optimizer, for which there is no place yet.
"""


def page() -> str:
    """The page: Table 1's rows with their recipes, then every plugin by kind."""
    parts = [HEAD.rstrip("\n")]
    for recipe in sorted(recipes_folder().glob("*.toml")):
        if row := re.search(r'row "(.+?)" of Table 1', title(recipe)):
            parts.append(f"| {row[1]} | `{recipe.stem}` |")
    parts += [
        "",
        "Where a row is only hyper-parameters, its recipe sets them on top of `at`; the others name a plugin.",
    ]
    plugins = [(kind_of(cls), s.name, cls) for s in Catalogue() if _ours(cls := s.load())]
    for kind, members in groupby(sorted(plugins, key=lambda p: (ORDER.index(p[0]), p[1])), key=lambda p: p[0]):
        parts.append(f"\n## {kind.capitalize()}")
        for _, name, cls in members:
            parts += [f"\n### `{name}`\n", _escaped(inspect.getdoc(cls) or "")]
            if paper := getattr(cls, "paper", ""):
                parts.append(f"\nSource: {paper}.")
            if recipes := [p.stem for p in recipes_naming(name) if p.parent == recipes_folder()]:
                parts.append(f"\nRecipes: {', '.join(f'`{r}`' for r in recipes)}.")
            if excludes := getattr(cls, "excludes", {}):
                parts.append("\nNot with " + "; ".join(f"`{other}` ({why})" for other, why in excludes.items()) + ".")
            parts += _options(cls)
    return "\n".join(parts) + "\n" + LEFT_OUT


def _ours(cls: type) -> bool:
    return cls.__module__.startswith("hookflat_plugins.")


def _options(cls: type) -> list[str]:
    options = describe(cls)
    if not options:
        return []
    head = ["", "| option | default | range | meaning |", "|---|---|---|---|"]
    rows = [(o.name, f"`{o.default}`", o.bounds or ", ".join(_choices(o.type)), o.description) for o in options]
    return head + [f"| `{name}` | {' | '.join(_escaped(cell, table=True) for cell in rest)} |" for name, *rest in rows]


def _choices(type_: str) -> list[str]:
    return re.findall(r"'([^']*)'", type_) if type_.startswith("Literal") else []


def _escaped(text: str, table: bool = False) -> str:
    """Norm bars, stars and brackets as they are."""
    text = re.sub(r"\*|<(?=[a-z])", r"\\\g<0>", text)
    return text.replace("|", r"\|") if table else text.replace("||", r"\|\|")


if __name__ == "__main__":
    Path(__file__).with_name("methods.md").write_text(page(), encoding="utf-8")
