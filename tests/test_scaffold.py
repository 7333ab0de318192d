"""What `hookflat init` and `hookflat new-plugin` write works as it is."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from commands import fails, hookflat

from hookflat.cli.beginning import Kind
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.scaffold import KINDS, templates_folder

ROOT = Path(__file__).parents[1]


def made(kind, folder, name="flat_thing"):
    done = hookflat("new-plugin", name, "--kind", kind, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / f"hookflat-{name.replace('_', '-')}"


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_clean_and_whole(kind, tmp_path):
    package = made(kind, tmp_path)
    run("ruff", "format", "--check", "--no-cache", ".", cwd=package)
    run("ruff", "check", "--no-cache", ".", cwd=package)
    files = {f.relative_to(package).as_posix(): f.read_text() for f in package.rglob("*") if f.is_file()}
    for file, text in files.items():
        assert "template" not in (file + text).lower(), file
    project = tomllib.loads(files["pyproject.toml"])
    (target,) = project["project"]["entry-points"]["hookflat"].values()
    module, cls = target.split(":")
    assert f"class {cls}:" in files[module.replace(".", "/") + ".py"]
    assert KINDS[kind] in project["project"]["description"]
    assert "pytest" in str(yaml.safe_load(files[".github/workflows/ci.yml"])["jobs"]["tests"]["steps"])
    assert {"README.md", "tests/test_flat_thing.py", "hookflat_flat_thing/recipes/flat_thing.toml"} <= files.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_passes_its_own_tests(kind, tmp_path):
    """All but the contract, which tests/test_contract.py holds for plugins like these; see the slow test below."""
    package = made(kind, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-k",
            "not contract",
            f"--rootdir={package}",
        ]
        assert pytest.main([*options, "-c", str(package / "pyproject.toml"), str(package / "tests")]) == 0
    for name, module in list(sys.modules.items()):  # the next kind's have the same names
        if str(getattr(module, "__file__", None) or "").startswith(str(package)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_package_built_and_installed_keeps_the_contract_and_its_recipe_runs(kind, tmp_path):
    """From its wheel in a fresh environment; heavy dependencies and hookflat come from the running one."""
    package, fresh, elsewhere = made(kind, tmp_path), tmp_path / "venv", tmp_path / "elsewhere"
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", package, cwd=tmp_path
    )
    venv.create(fresh)
    python = fresh / "bin" / "python"
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path
    )
    outer = [str(ROOT), *(p for p in sys.path if Path(p).name == "site-packages")]
    next(fresh.glob("lib/*/site-packages")).joinpath("outer.pth").write_text("\n".join(outer))
    elsewhere.mkdir()
    assert "passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests", cwd=elsewhere)
    few = [
        "run.epochs=1",
        "data.train=64",
        "model.width=8",
        "eval.final.examples=20",
        "eval.final_flatness.examples=10",
    ]
    few += ["plugins.early_stopping.enabled=false", "eval.curves.examples=20", "eval.through_training.enabled=false"]
    values = [part for value in few for part in ("--set", value)]
    assert "flat_thing" in run(python, "-m", "hookflat", "plugins", "flat_thing", cwd=elsewhere)
    run(python, "-m", "hookflat", "run", "flat_thing", *values, cwd=elsewhere)
    assert list(elsewhere.glob("runs/flat_thing+????????-0/eval.json"))


def test_the_first_recipe_runs_as_it_is_and_with_its_comments_taken_away(tmp_path):
    done = hookflat("init", "first.toml", cwd=tmp_path)
    assert "hookflat run first.toml" in done.stdout
    file = tmp_path / "first.toml"
    assert load_recipe(file).slot_names["loss"] == "trades"
    assert "template" not in file.read_text()
    lines = file.read_text().splitlines()
    shown = [line.removeprefix("# ") if line[2:3] == "[" or " = " in line.split("  ")[0] else line for line in lines]
    whole = tmp_path / "whole.toml"
    whole.write_text("\n".join(shown))
    assert {"plugins", "attack", "run", "data", "model", "eval"} <= tomllib.loads(whole.read_text()).keys()
    assert load_recipe(whole).plugins.keys() >= {"awp"}


def test_what_cannot_be_made_is_told_and_nothing_is_written(tmp_path):
    (tmp_path / "recipe.toml").write_text("mine")
    assert "exists already" in fails(2, "init", cwd=tmp_path)
    assert "ends in .toml" in fails(2, "init", "recipe.yaml", cwd=tmp_path)
    for name, reason in (
        ("trades", "is called 'trades' already"),
        ("weight_decay", "a recipe is called 'weight_decay' already"),
        ("plugins", "already"),
        ("batch", "would hide another name"),
        ("2fast", "each part begins with a letter"),
        ("a/../b", "at most 30 of a-z"),
        ("x" * 31, "at most 30"),
        ("lambda", "no word of Python's own"),
    ):
        assert reason in fails(2, "new-plugin", name, "--kind", "loss", cwd=tmp_path)
    made("loss", tmp_path)
    assert "exists already" in fails(2, "new-plugin", "flat-thing", "--kind", "data", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hookflat-flat-thing", "recipe.toml"]
    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_the_command_knows_every_kind_and_no_template_claims_a_plugin_s_name():
    assert tuple(Kind.__args__) == tuple(KINDS)
    assert "template_name" not in Catalogue().names()
    assert {p.name for p in templates_folder().iterdir() if p.is_dir()} == {"package", *KINDS}


def test_the_wheel_has_the_templates_and_the_pages(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [f for f in (ROOT / "templates").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert {f"hookflat/{f.relative_to(ROOT).as_posix()}" for f in ours} <= names
    assert "hookflat/templates/package/.github/workflows/ci.yml" in names
    for file in ("sharing/card.md", "watching/page.html", "watching/page.css", "watching/page.js"):
        assert f"hookflat/{file}" in names
