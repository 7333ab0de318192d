"""What the shell completes, and that it never needs torch for it."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from unittest.mock import patch

import pytest

from hookflat.cli import app
from hookflat.recipe import outline
from hookflat.recipe.catalogue import Catalogue, hooks_of, kind_of
from hookflat.recipe.options import describe
from hookflat.recipe.recipe import EvalOptions, RunOptions


def completed(line, *, cwd=None):
    """The words that bash is offered for the last word of a line, which may be empty."""
    words = {"_HOOKFLAT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    out = io.StringIO()
    with (
        patch.dict(os.environ, words),
        redirect_stdout(out),
        chdir(cwd or "."),
        pytest.raises(SystemExit),
    ):
        app(prog_name="hookflat")
    return out.getvalue().split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hookflat run trades_a", ["trades_awp"]),
        ("hookflat run trades --with scales/cifar10-m", ["scales/cifar10-mini"]),
        ("hookflat plugins catas", ["catastrophic_overfitting"]),
        ("hookflat run trades --set loss.", ["loss.beta=", "loss.name="]),
        ("hookflat run mart --set loss.b", ["loss.beta="]),
        ("hookflat run at --set plugins.awp.x", ["plugins.awp.xi="]),
        ("hookflat run at --set model.name=resnet", ["model.name=resnet18", "model.name=resnet_small"]),
        ("hookflat run at --with scales/wrn --set model.wid", ["model.widen="]),
        ("hookflat run at --set run.epochs_", ["run.epochs_factor="]),
        ("hookflat eval runs/x --protocol land", ["landscapes"]),
        ("hookflat eval runs/x --measure hess", ["hessian", "hessian_density"]),
        ("hookflat study tabl", ["table1"]),
        ("hookflat new-plugin x --kind wei", ["weight-perturbation"]),
        ("hookflat run no_such_recipe --set loss.", []),
    ],
)
def test_names_are_completed(line, words, tmp_path):
    assert completed(line, cwd=tmp_path) == words


def test_files_and_runs_here_are_completed_too(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "at"\n\n[loss]\nname = "trades"\n')
    (tmp_path / "mine-0").mkdir()
    (tmp_path / "mine-0" / "recipe.toml").write_text('[loss]\nname = "trades"\n')
    assert completed("hookflat run mine", cwd=tmp_path) == ["mine-0/", "mine.toml"]
    assert completed("hookflat run mine.toml --set loss.b", cwd=tmp_path) == ["loss.beta="]
    assert completed("hookflat eval mine-0 --set loss.b", cwd=tmp_path) == ["loss.beta="]


def test_the_outline_of_a_plugin_is_what_its_class_says():
    for source in Catalogue():
        cls = source.load()
        options, hooks = outline.outline(source.name)
        if source.package.startswith("hookflat "):
            described = {o.name: o.description for o in describe(cls)}
            assert options.keys() == described.keys(), source.name
            assert all(text in ("", described[name]) for name, text in options.items())  # "": of a named type
            assert hooks == hooks_of(cls), source.name
    models = [s.name for s in Catalogue() if kind_of(s.load()) == "model"]
    assert outline.names_for("model") == models


def test_the_options_of_run_and_eval_are_all_there():
    keys = outline.keys("at", [])
    for table, cls in (("run", RunOptions), ("eval", EvalOptions)):
        assert {f"{table}.{o.name}": o.description for o in describe(cls)}.items() <= keys.items()


def test_completion_imports_neither_torch_nor_the_hub():
    code = """
import sys
from hookflat.cli import completing
import typer
for recipe, line in (("trades", "loss."), ("at", "plugins.a"), ("at", "loss.name=")):
    context = typer.Context(typer.main.get_command(__import__("hookflat.cli").cli.app), info_name="run")
    context.params["recipe"] = recipe
    assert completing.option_names(context, line), line
assert completing.measure_names(context, "")
print(sorted({"torch", "huggingface_hub", "datasets", "matplotlib"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
