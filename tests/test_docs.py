"""What the documentation shows is what the code does."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import hookflat
from hookflat.recipe.catalogue import HOOKS, Catalogue
from hookflat.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def made(name, place=""):
    """A page of docs/ and what its script makes now."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"make_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (ROOT / "docs" / place / f"{name}.md").read_text(), module.page()


def test_the_hooks_page_is_made_from_the_specifications():
    page, now = made("hooks")
    assert page == now, "run python docs/make_hooks.py"
    for hook in HOOKS:
        assert f"### `{hook}(" in page


def test_the_page_of_early_stopped_networks_is_made_from_their_records():
    page, now = made("early_stopped", "examples")
    assert page == now, "run python docs/make_early_stopped.py"


def test_the_methods_page_is_made_from_plugins_and_recipes():
    page, now = made("methods")
    assert page == now, "run python docs/make_methods.py"
    for source in Catalogue():
        if source.package.startswith("hookflat "):
            assert f"### `{source.name}`" in page
    rows = page.partition("\n## Loss\n")[0]
    assert re.findall(r"^\| `(\w+)` \|[^|]*\|  \|", rows, re.M) == ["small_batch"]  # the others lead to a plugin


def test_every_row_of_table_1_has_a_recipe():
    """The nineteen rows as the paper prints them."""
    rows = {
        *(
            "+Unlabeled",
            "Cyclic",
            "AutoAugment",
            "AT-AWP",
            "Label noise",
            "Weight clipping",
            "TRADES",
            "Self-supervision",
        ),
        *("Weight decay", "Entropy-SGD", "MiSH", "Late multi-step", "SiLU", "Weight averaging", "Larger eps=9/255"),
        *("MART", "GeLU", "Label smoothing", "AT (baseline)"),
    }
    titles = [path.read_text().splitlines()[0] for path in (ROOT / "recipes").glob("*.toml")]
    listed = [row for title in titles for row in re.findall(r'row "(.+?)" of Table 1', title)]
    assert sorted(listed) == sorted(rows)
    assert all("recipes" not in title for title in titles)


def blocks(language):
    return [
        pytest.param(page, text, id=f"{page.name}-{i}")
        for page in PAGES
        for i, text in enumerate(re.findall(rf"```{language}[^\n]*\n(.*?)```", page.read_text(), re.S))
    ]


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_toml_blocks_are_toml_and_recipes_among_them_load(page, text, tmp_path):
    tables = tomllib.loads(text)
    if "extends" in tables and "alp" not in text:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        load_recipe(path)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_blocks_compile(page, text):
    compile(text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_recipes_named_in_commands_exist(page):
    for name in re.findall(r"hookflat run (recipes/\S+\.toml)", page.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_recipes_page_lists_every_key_and_its_default():
    from hookflat.recipe.options import describe
    from hookflat.recipe.recipe import EvalOptions, RunOptions, Stage

    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = dict.fromkeys(re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.M))
    for cls in (RunOptions, EvalOptions, Stage):
        for option in describe(cls):
            default = (
                option.default.replace("'", '"')
                .replace(str(8 / 255), "8/255")
                .replace("None", "none")
                .replace("False", "false")
            )
            assert (option.name, default.removesuffix(".0")) in {(n, shown.strip("`")) for n, shown in rows}, (
                option.name
            )


def test_the_version_stands_where_it_is_cited():
    assert f"version: {hookflat.__version__}" in (ROOT / "CITATION.cff").read_text()
