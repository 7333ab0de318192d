"""A stranger's package, installed for real: wheels in a fresh environment, used away from the clone.

The heavy dependencies come from the running environment through a .pth file; hookflat itself and the package under
`examples/` come from wheels built here, with no network.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import Done
from processes import finished
from safetensors.torch import load_file

import hookflat
from hookflat import testing
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "hookflat-alp"
PAGE = ROOT / "docs" / "plugins.md"


def succeeded(done: subprocess.CompletedProcess[str] | Done) -> str:
    assert done.returncode == 0, f"{getattr(done, 'args', '')}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Environment:
    """A fresh virtual environment, and a working directory that has nothing to do with the clone."""

    venv: Path
    cwd: Path

    @property
    def packages(self) -> Path:
        base = {"base": str(self.venv), "platbase": str(self.venv)}
        return Path(sysconfig.get_path("purelib", "venv", vars=base))

    def run(
        self, command: str, *args: object, path: Path | None = None, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment; `path` goes into PYTHONPATH, `given` to its input."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))}
        clean |= {"PYTHONNOUSERSITE": "1"} | ({"PYTHONPATH": str(path)} if path else {})
        program = self.venv / "bin" / command
        return subprocess.run(
            [program, *map(str, args)],
            cwd=self.cwd,
            env=clean,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )

    def hookflat(self, *commands: tuple[object, ...], path: Path | None = None) -> list[Done]:
        """`hookflat ARGUMENTS` for each of the commands, one after another in one fresh process."""
        script = "import json, sys; from commands import hookflat\nfor line in sys.stdin:\n"
        script += " done = hookflat(*json.loads(line)); print(json.dumps(vars(done)), flush=True)"
        code = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{script}"
        lines = "".join(json.dumps([str(part) for part in command]) + "\n" for command in commands)
        done = self.run("python", "-c", code, path=path, given=lines)
        return [Done(**json.loads(line)) for line in succeeded(done).splitlines()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """hookflat and hookflat-alp from wheels, everything else from the running environment."""
    folder = tmp_path_factory.mktemp("third_party")
    environment = Environment(folder / "venv", folder / "elsewhere")
    environment.cwd.mkdir()

    def python(*args: object) -> None:
        succeeded(subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False))

    for source in (ROOT, EXAMPLE):
        python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "wheels", source)
    python("-m", "venv", "--without-pip", environment.venv)
    wheels = sorted((folder / "wheels").glob("*.whl"))
    pip = ("-m", "pip", "--python", environment.venv / "bin" / "python", "install")
    python(*pip, "--quiet", "--no-deps", "--no-index", "--no-compile", *wheels)
    outer = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (environment.packages / "outer.pth").write_text(
        "\n".join(outer)
    )  # behind the wheels; .pth files there are not read
    return environment


# --- what is installed ------------------------------------------------------------------------------------------------


def test_everything_comes_from_the_wheels(installed):
    modules = ("hookflat", "hookflat_plugins", "hookflat_alp")
    code = f"import sys, {', '.join(modules)}; print(*(sys.modules[m].__file__ for m in {modules}), sep='\\n')"
    files = succeeded(installed.run("python", "-c", code)).splitlines()
    assert [Path(f).parent for f in files] == [installed.packages / m for m in modules]
    for file in ("recipes/published/stutz2021.csv", "reporting/page.html"):  # what hookflat report needs
        assert (installed.packages / "hookflat" / file).is_file()


def test_the_plugins_are_listed_with_their_package(said):
    lines = succeeded(said["hookflat plugins"]).splitlines()
    ours = {line.split()[0]: line for line in lines if "hookflat-alp 0.1.0" in line}
    assert list(ours) == ["alp", "local_lipschitz"]
    assert ours["alp"].split()[1] == "loss"
    assert ours["local_lipschitz"].split()[1] == "measure"


def test_recipes_travel_in_the_wheels_and_are_listed_with_their_package(installed, said):
    lines = succeeded(said["hookflat recipes"]).splitlines()
    lines = [line for line in lines if not line.lstrip().startswith("needs")]
    theirs = [line for line in lines if line.endswith(" (hookflat-alp)")]
    assert [line.split()[0] for line in theirs] == ["alp"]
    own = installed.packages / "hookflat" / "recipes"
    shipped = [str(p.relative_to(own).with_suffix("")) for p in sorted(own.rglob("*.toml"))]
    assert [line.split()[0] for line in lines if line not in theirs] == shipped
    assert {"at", "trades", "scales/cifar10"} <= set(shipped)


# --- what it does -----------------------------------------------------------------------------------------------------

FEW = {
    "run.epochs": 1,
    "data.train": 64,
    "model.width": 8,
    "plugins.early_stopping.enabled": "false",
    "eval.curves.examples": 10,
    "eval.through_training.examples": 10,
    "eval.through_training.average_flatness.samples": 1,
    "eval.final.examples": 15,
    "eval.final.robust_loss.restarts": 1,
    "eval.final.robust_loss.steps": 2,
    "eval.final_flatness.examples": 10,
    "eval.final_flatness.average_flatness.samples": 1,
    "eval.final_flatness.average_flatness.reference_restarts": 1,
}
SMALL = [part for key, value in FEW.items() for part in ("--set", f"{key}={value}")]


def test_the_recipe_runs_by_name(installed):
    succeeded(installed.run("hookflat", "run", "alp", *SMALL))
    (folder,) = (installed.cwd / "runs").glob("alp+????????-0")
    last = json.loads((folder / "eval.json").read_text())["models"]["last"]
    assert last["test"]["local_lipschitz"] > 0
    assert last["train"]["local_lipschitz"] > 0
    assert tomllib.loads((folder / "recipe.toml").read_text())["loss"] == {"name": "alp", "weight": 0.5, "clean": 0.5}


def shown(done: Done) -> dict:
    """The tables that `hookflat show` prints."""
    return tomllib.loads(succeeded(done).split("\nhooks, in call order")[0])


def measures(tables: dict) -> dict[str, set[str]]:
    """Stage to the names of its measures."""
    stages = {stage: table for stage, table in tables["eval"].items() if isinstance(table, dict)}
    return {stage: {n for n, table in tables.items() if isinstance(table, dict)} for stage, tables in stages.items()}


def test_a_scale_of_hookflat_fits_the_recipe_of_the_package(said):
    small, large = shown(said["hookflat show alp"]), shown(said["hookflat show alp --with scales/cifar10"])
    assert small["data"]["name"] == "digits"
    assert large["data"]["path"] == "uoft-cs/cifar10"
    assert large["attack"]["eps"] == large["eval"]["eps"] == 8 / 255
    assert large["loss"] == small["loss"] == {"name": "alp", "weight": 0.5, "clean": 0.5}
    assert large["eval"]["final"]["examples"] == 1000
    assert large["eval"]["final"]["local_lipschitz"] == small["eval"]["final"]["local_lipschitz"]
    assert large["plugins"].keys() == small["plugins"].keys()
    expected = measures(load_recipe("at").tables)
    expected["final"].add("local_lipschitz")
    assert measures(large) == measures(small) == expected


def test_the_package_passes_its_own_tests(installed):
    tests = shutil.copytree(EXAMPLE / "tests", installed.cwd / "tests")
    but = "not recipe_runs"  # the test above does
    passed = succeeded(installed.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", but, tests))
    assert "passed" in passed
    assert "skipped" not in passed


# --- a package that cannot be imported --------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a plugin whose import raises."""
    (tmp_path / "broken_plugin.py").write_text('raise RuntimeError("no GPU driver")\n')
    metadata = tmp_path / "broken_plugin-0.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text(
        "[hookflat]\nbroken = broken_plugin:Broken\n[hookflat.recipes]\nbroken = broken_plugin.recipes\n"
    )
    return tmp_path


REASON = "plugin 'broken' of broken-plugin 0.3 cannot be imported: RuntimeError: no GPU driver"


def test_a_broken_plugin_is_left_out_of_the_list_and_harms_no_recipe_without_it(installed, broken):
    """A recipe with it ends with the reason."""
    recipe = broken / "mine.toml"
    recipe.write_text('extends = "alp"\n\n[plugins.broken]\n')
    without, with_it, plugins = installed.hookflat(("show", "alp"), ("show", recipe), ("plugins",), path=broken)
    assert "hookflat-alp 0.1.0" in succeeded(plugins)
    assert plugins.stderr.splitlines() == [f"hookflat: left out: {REASON}"]
    assert 'name = "alp"' in succeeded(without)
    assert without.stderr == ""
    assert with_it.returncode == 2
    assert with_it.stderr.splitlines() == [f"hookflat: {recipe}:3: plugins.broken: {REASON}"]


# --- the page that explains it ----------------------------------------------------------------------------------------

BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(PAGE.read_text())
README = BLOCK.findall((EXAMPLE / "README.md").read_text())
FILES = [(title, text) for _, title, text in BLOCKS if "/" in title or title == "pyproject.toml"]
SKETCHES = [(title, text) for _, title, text in BLOCKS if title and (title, text) not in FILES]


@pytest.mark.parametrize(("title", "text"), FILES)
def test_blocks_are_the_files_of_the_example(title, text):
    assert text in (EXAMPLE / title).read_text()


def test_every_file_of_the_package_is_explained():
    files = {str(p.relative_to(EXAMPLE)) for p in EXAMPLE.rglob("*") if p.suffix in {".py", ".toml"}}
    assert {f for f in files if not f.endswith("__init__.py")} == {title for title, _ in FILES}
    assert [f for f in sorted(files) if f not in PAGE.read_text()] == []


@pytest.fixture(scope="module")
def sketches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the page builds up, block by block."""
    (name,) = {title for title, _ in SKETCHES}
    file = tmp_path_factory.mktemp("sketches") / name
    file.write_text("\n\n".join(text for _, text in SKETCHES))
    return file


@pytest.mark.parametrize("name", ["weight_noise", "loss_cap"])
def test_sketches_keep_the_contract(name, sketches):
    plugin = Catalogue([sketches]).find(name).load()
    for check in testing.CHECKS:
        check(plugin)


def test_processes_share_the_plugins_of_the_page(sketches, tmp_path):
    """Loss, measure, state and weight perturbation: two processes give the numbers of one."""
    files = (sketches, EXAMPLE / "hookflat_alp" / "alp.py", EXAMPLE / "hookflat_alp" / "local_lipschitz.py")
    options = {
        "loss.name": "alp",
        "model.norm": "group",
        "plugins.weight_noise.xi": 0.01,
        "plugins.loss_cap.factor": 1.1,
    }
    options["eval.final.local_lipschitz.steps"] = 5
    arguments = ["run", "at", *(p for f in files for p in ("--plugin", f)), *SMALL]
    arguments += [p for key, value in options.items() for p in ("--set", f"{key}={value}")]
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, folder in ((1, one), (2, two)):
        done = finished(tmp_path / f"said {processes}", *arguments, "--out", folder, processes=processes)
        assert done.returncode == 0, done.stderr
    weights, other = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.allclose(weights[name], other[name], rtol=0, atol=1e-5) for name in weights)
    last, same = (json.loads((folder / "eval.json").read_text())["models"]["last"]["test"] for folder in (one, two))
    assert same["local_lipschitz"] == pytest.approx(last["local_lipschitz"], rel=1e-3)


def console(blocks: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """The hookflat commands of a page, each with the output printed below it; what is to be trained is only shown."""
    text = "".join(text for language, _, text in blocks if language == "console").replace(
        "hookflat run", "hookflat show"
    )
    return re.findall(r"^\$ (hookflat .*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


COMMANDS = dict(console(README)) | dict(console(BLOCKS))
OTHERS = ("plugins", "recipes", "show alp", "show alp --with scales/cifar10", "show mine.toml")


@pytest.fixture(scope="module")
def said(installed: Environment) -> dict[str, Done]:
    """What hookflat says to every command of the pages and to the others of this file."""
    shutil.copy(EXAMPLE / "hookflat_alp" / "alp.py", installed.cwd)
    (text,) = [text for language, _, text in README if language == "toml"]
    (installed.cwd / "mine.toml").write_text(text)
    commands = [*dict.fromkeys([*COMMANDS, *(f"hookflat {arguments}" for arguments in OTHERS)])]
    done = installed.hookflat(*(command.split()[1:] for command in commands))
    return dict(zip(commands, done, strict=True))


@pytest.mark.parametrize(("command", "output"), COMMANDS.items(), ids=COMMANDS)
def test_commands_do_what_the_page_says(said, command, output):
    """Printed output word for word; "..." stands for any lines."""
    done = said[command]
    if not output:
        succeeded(done)
        return
    printed = "".join(f"{line.rstrip()}\n" for line in (done.stdout + done.stderr).splitlines())
    lines = [r"(.*\n)+" if line == "..." else re.escape(line) + r"\n" for line in output.splitlines()]
    assert re.fullmatch("".join(lines), printed), printed


def test_the_recipe_of_the_readme_is_one(said):
    (text,) = [text for language, _, text in README if language == "toml"]
    tables = shown(said["hookflat show mine.toml"])
    assert tables["loss"]["name"] == "alp"
    assert tables["plugins"]["awp"]["xi"] == tomllib.loads(text)["plugins"]["awp"]["xi"]


# --- what the page calls public ---------------------------------------------------------------------------------------

_, _, SECTION = PAGE.read_text().partition("## What is public")
LISTED = {
    name for row in re.findall(r"^\| .* \| (.*) \|$", SECTION, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
}
FOR_TESTS = {"CHECKS", "TINY", "tiny_run", "run_recipe"}


def test_the_page_lists_the_face():
    assert LISTED - FOR_TESTS - {"hookflat"} == set(hookflat.__all__)
    assert [name for name in hookflat.__all__ if not hasattr(hookflat, name)] == []
    assert [name for name in FOR_TESTS if not hasattr(testing, name)] == []


def test_public_names_of_a_run_exist():
    (sentence,) = re.findall(r"^`Run` has .*?\.$", SECTION, re.DOTALL | re.MULTILINE)
    with testing.tiny_run() as run:
        assert [name for name in re.findall(r"`(\w+)`", sentence)[1:] if not hasattr(run, name)] == []


def imported(source: str) -> Iterator[str]:
    """What is imported of hookflat, as "module.name"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in {"hookflat", "hookflat_plugins"}:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_example_and_the_sketches_use_public_names_only():
    sources = [p.read_text() for p in EXAMPLE.rglob("*.py")] + [text for _, text in SKETCHES]
    used = {name for source in sources for name in imported(source)}
    assert len(used) > 10
    assert used - {f"hookflat.{name}" for name in hookflat.__all__} == {"hookflat.testing"}
