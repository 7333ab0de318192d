"""Write docs/methods.md from the plugins and recipes: `python docs/make_methods.py`. A test checks it is up to date."""

from __future__ import annotations

import csv
import inspect
import re
import tomllib
from itertools import groupby
from pathlib import Path

from hookflat.recipe.catalogue import SLOTS, Catalogue, kind_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.options import describe
from hookflat.recipe.shipped import recipes_folder, recipes_naming, title

ORDER = (
    *("loss", "attack", "weight perturbation", "optimizer", "schedule", "regularizer", "activation", "averaging"),
    *("more data", "model selection", "diagnostic", "measure", "model", "data", "figure", "tool"),
)
METHODS = (*ORDER[:8], "more data", "model")
"""Kinds of what a recipe is made of."""
HEAD = """# Methods

Every plugin that ships, made from the code by `python docs/make_methods.py`; `hookflat plugins NAME` prints the same.
Measured on the embedded digits: [digits.md](digits.md). "Protocol" and "quirk" are those of [protocol.md](protocol.md).

## What each recipe gave

Three commands make the columns. Empty: not measured.

- Cost, `python benchmarks/peers.py --only methods --csv docs/costs.csv --width 16 --threads 1 --pairs 3`: what a whole
  training takes over that of `at`, on a ResNet-18 and images of CIFAR-10's size, without measures and without networks
  that teach or label, on a core shared with others (`at` over itself came out at 1.06). `timm` and `vit` train other
  networks, whose cost says nothing beside that of `at`.
- Digits, `python benchmarks/methods.py`: RErr (PGD) in % and average-case flatness of the last network, over the seeds
  of [digits.md](digits.md), which has `vit` at another radius and in its text.
- CIFAR-10, `hookflat study methods --with scales/cifar10-mini --protocol mini`, its rows of Table 1 by `table1`: RErr
  (APGDs) in %, RLoss and average-case flatness of the last network on 1000 images of 16 pixels
  ([examples](examples/README.md), [which images](examples/README.md#which-images)).

`state_of_the_art` is without generated images in both.

A plugin's name leads to its formula, options and source.

| recipe | what it is | plugins | Table 1 | cost | digits: RErr | flatness | CIFAR-10: RErr | RLoss | flatness | seeds |
|---|---|---|---|---|---|---|---|---|---|---|
"""


LEFT_OUT = """
## Left out

One method of the field is not here: LAP (Lin et al. 2024, arXiv 2405.16262). The weights of its published code
move along a step of the optimizer, down the loss, where the paper speaks of an adversarial perturbation. Of
[uat](#uat), which is here, not all could be confirmed, as its authors released no training code: it says what.
"""


def page() -> str:
    """The page: what each recipe gave, then every plugin by kind."""
    parts = [HEAD.rstrip("\n")]
    costs, digits, cifar = _costs(), _digits(), _cifar()
    plugins = [(kind_of(cls), s.name, cls) for s in Catalogue() if _ours(cls := s.load())]
    naming = {name: {path.stem for path in recipes_naming(name)} for kind, name, _ in plugins if kind in METHODS}
    for recipe in sorted(recipes_folder().glob("*.toml")):
        family = _family(recipe)
        linked = [name for name, recipes in naming.items() if recipes & family] or _set_by(recipe)
        links = ", ".join(f"[{name}](#{name})" for name in linked)
        what, row = title(recipe), re.search(r'row "(.+?)" of Table 1', title(recipe))
        what = re.sub(r"[:;,]? ?(?:row|the paper's|as) ?\"?[^:;]*\" of Table 1", "", what) if row else what
        cells = [what.rstrip(". "), links, row[1] if row else "", costs.get(recipe.stem, "")]
        cells += digits.get(recipe.stem, [""] * 2) + cifar.get(recipe.stem, [""] * 4)
        parts.append(f"| `{recipe.stem}` | {' | '.join(_escaped(cell, table=True) for cell in cells)} |")
    parts += [
        "",
        "A recipe that leads to a plugin of `at` alone sets that one's options; `small_batch` sets the run's.",
    ]
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


def _family(recipe: Path) -> set[str]:
    """A recipe and those that it extends, `at` aside."""
    parent = re.search(r'^extends = "(\w+)\.toml"', recipe.read_text(encoding="utf-8"), re.M)
    above = _family(recipe.with_name(f"{parent[1]}.toml")) if parent and parent[1] != "at" else set()
    return {recipe.stem} | above


def _set_by(recipe: Path) -> list[str]:
    """The plugins whose options a recipe sets without naming them."""
    own, whole = tomllib.loads(recipe.read_text(encoding="utf-8")), load_recipe(recipe).tables
    return [whole[slot]["name"] for slot in SLOTS if slot in own]


def _costs() -> dict[str, str]:
    """Time over AT's of each recipe."""
    with Path(__file__).with_name("costs.csv").open(encoding="utf-8") as file:
        return {row["recipe"]: row["time"] for row in csv.DictReader(file)}


def _digits() -> dict[str, list[str]]:
    """RErr and flatness of each recipe in digits.md."""
    text = Path(__file__).with_name("digits.md").read_text(encoding="utf-8")
    rows = {r[0]: r[1].split(" | ") for r in re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M)}
    return {name: [r[1], r[4]] for name, r in rows.items()}


def _cifar() -> dict[str, list[str]]:
    """RErr, RLoss, flatness and seeds of each recipe in the example with every method."""
    with (Path(__file__).parent / "examples" / "cifar10-methods" / "table1.csv").open(encoding="utf-8") as file:
        return {
            row["recipe"]: [*(_mean(row, *of) for of in (("rerr", 1), ("loss", 2), ("average", 2))), row["seeds"]]
            for row in csv.DictReader(file)
        }


def _mean(row: dict[str, str], name: str, digits: int) -> str:
    spread = row[f"{name}_std"]
    return f"{float(row[f'{name}_mean']):.{digits}f}" + (f" ± {float(spread):.{digits}f}" if spread else "")


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
