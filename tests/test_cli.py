import json
import os
import subprocess
import sys

import pytest
import torch
from commands import fails, hookflat

import hookflat as library
from hookflat.cli import app
from hookflat.recipe.shipped import find_recipe

SMALL = {
    "run.epochs": 1,
    "run.threads": 1,
    "data.train": 40,
    "data.test": 60,
    "model.width": 8,
    "plugins.early_stopping.holdout": 10,
    "eval.curves.examples": 10,
    "eval.through_training.examples": 10,
    "eval.final.examples": 10,
    "eval.final.robust_loss.steps": 2,
    "eval.final.robust_loss.restarts": 1,
    "eval.final_flatness.examples": 10,
    "eval.final_flatness.average_flatness.samples": 2,
    "eval.final_flatness.average_flatness.steps": 2,
    "eval.final_flatness.average_flatness.reference_restarts": 1,
}
TINY = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


def test_run_by_name_from_anywhere_prints_plain_lines_and_a_table(tmp_path):
    done = hookflat("run", "trades", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trades: loss trades, optimizer sgd, schedule multistep")
    for word in ("data ", "model ", "attack ", "training ", "device ", "folder "):
        assert any(line.strip().startswith(word) for line in lines[:12]), word
    assert sum(line.startswith("epoch ") for line in lines) == 1
    for row in ("clean error, test", "RErr (PGD), test", "RLoss, train", "RLoss, gap", "average-case flatness, test"):
        assert row in done.stdout
    assert "\x1b" not in done.stdout
    (run,) = (tmp_path / "runs").glob("trades+????????-0")
    assert (run / "figures" / "overfitting.png").stat().st_size > 5000
    assert (run / "figures" / "flatness_through_training.png").exists()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert "complete already" in hookflat("run", "trades", *TINY, cwd=tmp_path).stdout


def test_show_says_where_values_come_from_and_the_hooks_in_order():
    shown = hookflat("show", "at_awp", "--set", "plugins.awp.xi=0.5").stdout
    assert "xi = 0.5" in shown
    assert "# --set plugins.awp.xi" in shown
    assert "at.toml:" in shown
    assert "weight_decay = 0.0005" in shown
    assert "gradients          awp (around), core" in shown


def test_the_shown_tables_are_toml():
    import tomllib

    shown = hookflat("show", "trades", "--with", "scales/cifar10").stdout
    tables = tomllib.loads(shown.split("hooks, in call order")[0])
    assert tables["data"]["path"] == "uoft-cs/cifar10"
    assert tables["schedule"]["milestones"] == [0.4, 0.6, 0.8]


def test_who_answers_a_hook_that_is_answered_once_is_shown(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom hookflat import hookimpl\n\n@dataclass(eq=False)\nclass Mine:\n"
        "    @hookimpl\n    def criterion(self, logits, target):\n        return None\n"
        "    @hookimpl\n    def extra_loss(self):\n        return None\n"
    )
    more = ("--set", "plugins.mine.enabled=true", "--set", "plugins.label_smoothing.tau=0.1")
    shown = hookflat(
        "show", "entropy_sgd", "--plugin", file, *more, "--set", "plugins.self_supervision.hidden=4"
    ).stdout
    hooks = dict(
        line.split(maxsplit=1) for line in shown.split("hooks, in call order\n")[1].splitlines() if "  " in line
    )
    assert hooks["criterion"] == "mine, else label_smoothing, else core"
    assert hooks["extra_loss"] == "mine, self_supervision"  # whom all are asked
    assert hooks["build_model"] == "self_supervision (around), resnet_small"


def test_plugins_are_listed_and_explained():
    listed = hookflat("plugins").stdout
    assert "awp" in listed
    assert "weight perturbation" in listed
    one = hookflat("plugins", "awp").stdout
    assert "Wu et al. 2020" in one
    assert "xi" in one
    assert "relative to the L2 norm of each layer" in one
    assert "did you mean 'awp'" in fails(2, "plugins", "apw")


def test_recipes_are_listed_and_copied_with_what_they_extend(tmp_path):
    assert "scales/cifar10" in hookflat("recipes").stdout
    assert hookflat("recipes", "trades", "--to", tmp_path / "mine").returncode == 0
    assert (tmp_path / "mine" / "at.toml").read_text() == find_recipe("at").read_text()
    assert hookflat("show", tmp_path / "mine" / "trades.toml").returncode == 0
    assert hookflat("recipes", "mart", "--to", tmp_path / "mine").returncode == 0  # at.toml is there already
    (tmp_path / "mine" / "at.toml").write_text("# mine\n")
    told = fails(2, "recipes", "apgd", "--to", tmp_path / "mine")
    assert f"{tmp_path / 'mine' / 'at.toml'} exists already" in told
    assert not (tmp_path / "mine" / "apgd.toml").exists()  # nothing is left half done


def test_a_file_that_a_recipe_extends_on_two_ways_is_copied_once(tmp_path):
    for name, bases in {"a": [], "b": ["a.toml"], "c": ["./a.toml"], "d": ["b.toml", "c.toml"]}.items():
        (tmp_path / f"{name}.toml").write_text(f"extends = {bases}\n")
    said = hookflat("recipes", tmp_path / "d.toml", "--to", tmp_path / "mine")
    assert said.returncode == 0, said.stderr
    assert sorted(p.stem for p in (tmp_path / "mine").iterdir()) == ["a", "b", "c", "d"]


def test_a_plugin_file_needs_no_package(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Mine."""\nfrom dataclasses import dataclass\nfrom hookflat import hookimpl\n'
        "@dataclass(eq=False)\nclass Squared:\n    '''Squared error of the logits.'''\n    weight: float = 1.0\n"
        "    @hookimpl\n    def loss(self, run, batch, x_adv):\n"
        "        return self.weight * run.model(x_adv).square().mean()\n"
    )
    arguments = ("--plugin", file, "--set", "loss.name=squared", "--set", "loss.weight=0.5")
    done = hookflat("run", "at", *TINY, *arguments, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert 'name = "squared"\nweight = 0.5' in (tmp_path / "run" / "recipe.toml").read_text()
    assert "Squared error" in hookflat("plugins", "--plugin", file).stdout
    assert "no plugin is called 'squared'" in fails(2, "run", "at", *arguments[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "traeds"], "did you mean 'trades'?"),
        (["run", "at", "--set", "loss.fracton=1"], "did you mean 'fraction'?"),
        (["run", "at", "--with", "nowhere"], "no recipe nowhere"),
        (["run", "at", "--plugin", "nowhere.py"], "no such file"),
        (["show", "at", "--set", "run.epochs=many"], "valid integer"),
        (["run", "at", "--set", "plugins.early_stopping.holdout=700"], "cannot hold out 700 of 700"),
        (["run", "at", "--with", "scales/images", "--set", "data.path=nowhere/at-all"], "cannot be loaded"),
        (["run", "at", "--with", "scales/images", "--set", "data.path=./nowhere"], "no such folder"),
        (["recipes", "trades", "--to", "/proc/nowhere"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_clear_message_and_exit_code_2(arguments, message, tmp_path):
    said = fails(2, *arguments, cwd=tmp_path)
    assert message in said
    assert len(said.strip().splitlines()) <= 2


def test_a_hub_id_without_network_is_said_at_once(tmp_path):
    said = fails(2, "run", "at", "--with", "scales/cifar10", cwd=tmp_path)  # HF_HUB_OFFLINE is set
    assert "data.path = 'uoft-cs/cifar10' cannot be loaded" in said


def test_a_folder_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "choose another with --out" in fails(2, "run", "at", *TINY, "--out", blocker / "run")


def test_a_failed_training_is_exit_code_3_and_debug_shows_the_traceback(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from hookflat import hookimpl\n"
        "@dataclass(eq=False)\n"
        "class Bad:\n"
        "    @hookimpl\n"
        "    def after_step(self): raise ZeroDivisionError('oh')\n"
    )
    used = ("--plugin", file, "--set", "plugins.bad.enabled=true", "--out", tmp_path / "run")
    arguments = ("run", "at", *TINY, *used)
    assert f"plugin 'bad' failed in hook 'after_step': ZeroDivisionError: oh ({file}:6" in fails(3, *arguments)
    debug = hookflat(*arguments, "--debug")
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr


# --- how a command ends -----------------------------------------------------------------------------------------------

COMMANDS = {
    **{"show": ["at"], "plugins": [], "recipes": [], "run": ["at"], "eval": ["x"], "rescale": ["x", "2"]},
    **{"study": ["table1"], "report": ["x"], "compare": ["x", "y"], "watch": ["x"]},
    **{"card": ["x"], "push": ["x", "a/b"], "init": ["x"], "new-plugin": ["x", "--kind", "loss"]},
}


def test_these_are_all_commands():
    assert {c.name or c.callback.__name__ for c in app.registered_commands} == {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_the_same_codes(name, monkeypatch):
    def ends_with(error, *more):
        def raising(**_):
            raise error

        monkeypatch.setattr(cell, "cell_contents", raising)
        return hookflat(name, *COMMANDS[name], *more)

    callback = next(c.callback for c in app.registered_commands if (c.name or c.callback.__name__) == name)
    cell = next(c for c in callback.__closure__ if c.cell_contents is callback.__wrapped__)
    for error, code in ((library.UserError("mine\x1b[31m"), 2), (library.TrainingFailed("mine\x1b[31m"), 3)):
        done = ends_with(error)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "hookflat: mine\\x1b[31m\n")
        debug = ends_with(error, "--debug")
        assert (debug.returncode, "Traceback" in debug.stderr) == (code, True)
        assert "\x1b" not in debug.stderr
    for bug in (ZeroDivisionError("oh\x1b"), EOFError("oh\x1b"), RuntimeError("oh\x1b")):
        done = ends_with(bug)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Traceback")
        assert f"{type(bug).__name__}: " in done.stderr
        assert "Please report it as an issue of the project" in done.stderr.splitlines()[-1]
        assert "\x1b" not in done.stderr
    assert hookflat(name, *COMMANDS[name], "--no-such-option").returncode == 2


@pytest.mark.parametrize("name", ["eval", "rescale", "report", "compare", "study", "run", "show", "recipes", "plugins"])
def test_names_that_no_file_can_have(name):
    more = {"rescale": ["2"], "compare": ["y"]}.get(name, [])
    for strange in ("x" * 5000, "a\0b"):
        assert len(fails(2, name, strange, *more)) < 1500


@pytest.mark.parametrize("which", ["../../elsewhere", "/tmp/x", "..", "", "²", "last/..", "1" * 500, "-1", "best\n"])
def test_which_takes_names_and_epochs_and_no_paths(which, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("[run]\nepochs = 1\n")
    for command in (("eval", "run", f"--which={which}"), ("rescale", "run", "2", f"--which={which}")):
        assert "should be last, best, live or the number of an epoch" in fails(2, *command, cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["recipe.toml", "run"]


def test_json_has_no_nan_and_no_control_characters(capsys):
    from hookflat.cli.app import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 0.5], "c": "\x9b\x7f\u202e±"})
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert json.loads(said, parse_constant=pytest.fail) == {"a": None, "b": [None, 0.5], "c": "\x9b\x7f\u202e±"}


def test_no_file_of_a_run_has_nan(tmp_path):
    from hookflat.records.folder import RunFolder
    from hookflat.records.weights import about_weights, save_weights

    folder = RunFolder(tmp_path)
    folder.append({"epoch": 1, "loss": float("nan")})
    assert folder.metrics.read_text() == '{"epoch": 1, "loss": null}\n'
    import torch

    save_weights(tmp_path / "w.safetensors", torch.nn.Linear(1, 1), rerr=float("inf"))
    assert about_weights(tmp_path / "w.safetensors") == {"rerr": None}


def test_names_of_folders_reach_the_terminal_as_text(tmp_path):
    for name in ("a\x1b[2J", "b[red]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(f"[run]\nseed = {len(name)}\n")
    done = hookflat("compare", "a\x1b[2J", "b[red]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a\\x1b[2J" in done.stdout
    assert "b[red]" in done.stdout
    assert "\x1b" not in done.stdout


HEAVY = {"torch", "numpy", "accelerate", "timm", "torchvision", "datasets", "matplotlib", "PIL", "rich"}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], []),
        (["run", "--help"], []),
        (["--version"], []),
        (["recipes"], []),
        (["plugins"], ["numpy", "rich", "torch"]),
        (["plugins", "awp"], ["numpy", "rich", "torch"]),
        (["show", "trades"], ["numpy", "torch"]),
    ],
    ids=" ".join,
)
def test_a_command_imports_no_heavy_package_that_it_does_not_need(arguments, needed):
    code = "import sys, hookflat.cli\ntry: hookflat.cli.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(HEAVY & set(done.stderr.split())) == needed


# --- for scripts ------------------------------------------------------------------------------------------------------


def facts(*arguments, **kwargs):
    done = hookflat(*arguments, "--json", **kwargs)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_facts_as_json(tmp_path):
    assert library.__version__ in hookflat("--version").stdout
    shown = facts("show", "at_awp", "--set", "plugins.awp.xi=0.5")
    assert shown["tables"]["plugins"]["awp"]["xi"] == 0.5
    assert shown["origins"]["plugins.awp.xi"] == "--set plugins.awp.xi"
    assert shown["hooks"]["gradients"] == ["awp (around)", "core"]
    assert {"name": "awp", "kind": "weight perturbation"}.items() <= facts("plugins", "awp").items()
    assert {p["name"] for p in facts("plugins")} >= {"awp", "trades"}
    assert {r["name"] for r in facts("recipes")} >= {"trades", "scales/cifar10"}
    plan = facts("study", "table1", "--plan", cwd=tmp_path)
    assert {run["state"] for run in plan["runs"]} == {"todo"}
    assert len(plan["runs"]) == 60
    assert "--json goes with --plan" in fails(2, "study", "table1", "--json", cwd=tmp_path)


def test_measured_networks_as_json_and_as_a_data_frame(tmp_path):
    from hookflat import results
    from hookflat.testing import run_recipe

    for seed in (0, 1):
        run_recipe({"run": {"seed": seed}}, tmp_path / "runs" / f"tiny-{seed}")
    one, other = (tmp_path / "runs" / f"tiny-{seed}" for seed in (0, 1))
    compared = facts("compare", one, other)
    assert compared["recipe"] == {"run.seed": [0, 1]}
    table = results(tmp_path / "runs")
    assert list(table["seed"]) == [0, 1]
    last = json.loads((one / "eval.json").read_text())["models"]["last"]
    assert table.loc[0, "test_clean_error"] == last["test"]["clean_error"]
    assert compared["numbers"]["last test clean loss"] == list(table["test_clean_loss"])


SEVEN = ("eval", "seven.pt", "--arch", "resnet18", "--data", "images")
BEFORE_TORCH = {
    "a network's name": ("eval", "w.pt", "--arch", "timm:resnet19", "--data", "digits", "did you mean 'resnet18'?"),
    "the same in a recipe": ("run", "timm", "--set", "model.network=resnet19", "did you mean 'resnet18'?"),
    "a plugin's name": ("run", "trades", "--set", "loss.name=traeds", "did you mean 'trades'?"),
    "classes of digits": (
        "eval",
        "seven.pt",
        "--arch",
        "resnet18",
        "--data",
        "digits",
        "7 classes, and the data has 10",
    ),
    "classes as said": (*SEVEN, "--set", "data.classes=3", "a network of 7 classes, and the data has 3"),
    "a study's name": ("study", "tabel1", "a shipped study (did you mean 'table1'?)"),
    "no file": ("eval", "nothing.pt", "neither a run folder, nor a file"),
    "no file to rescale": ("rescale", "nothing.pt", "2", "neither a run folder, nor a file"),
    "no run to share": ("card", "nothing", "nothing is no run folder"),
    "no folder to watch": ("watch", "nothing", "neither a run's nor a study's folder"),
    "no recipe to show": ("show", "traeds", "did you mean 'trades'?"),
    "no architecture": ("eval", "w.pt", "say what network it is for"),
    "an option of [run]": ("run", "trades", "--set", "run.seed=-1", "--set", "loss.name=x", "run.seed"),
    "an option of a stage": ("run", "trades", "--set", "eval.final.exmples=3", "did you mean 'examples'?"),
    "an option of a plugin": ("run", "trades", "--set", "loss.bta=3", "option of 'trades' (did you mean 'beta'?)"),
    "one that it inherits": ("run", "trades", "--set", "attack.stesp=3", "option of 'pgd' (did you mean 'steps'?)"),
    "text for a number": ("run", "trades", "--set", "loss.beta=abc", "loss.beta: 'abc' is neither a number nor"),
    "a number below its range": ("run", "at", "--set", "attack.eps=-1", "should be greater than or equal to 0, not -1"),
    "none of the choices": ("run", "at", "--set", "attack.start=box", "attack.start: should be 'uniform_norm'"),
    "a type that a module names": ("run", "at", "--set", "model.width=9", "should be a multiple of 2, not 9"),
    "an item of a list": (
        *("run", "at", "--set", "eval.final_flatness.average_flatness.xi=[1, -2]"),
        "eval.final_flatness.average_flatness.xi.1: should be greater than or equal to 0, not -2",
    ),
    "several things": (
        "run",
        "at",
        "--set",
        "loss.name=x",
        "--set",
        "attack.steps=1.5",
        "attack.steps: should be a valid integer, not 1.5",
    ),
    "a package that is missing": ("run", "at", "--set", "track.with=['aim']", "'aim' is not installed: pip install"),
    "no data": ("run", "at", "--set", "data.name=images", "--set", "data.path=/no/where", "no such folder or file"),
    "data of the hub, without network": (*SEVEN[:-1], "some/set", "'some/set' cannot be loaded: there is no such"),
    "data of the hub that a scale names": ("run", "at", "--with", "scales/cifar10", "and the hub does not answer"),
}

IN_ONE_PROCESS = """
import contextlib, io, json, sys
from hookflat.cli import main
said = {}
for case, arguments in json.loads(sys.argv[1]).items():
    err, code, sys.argv = io.StringIO(), 0, ["hookflat", *arguments]
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    said[case] = code, err.getvalue(), "torch" in sys.modules
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said_before_torch(tmp_path_factory):
    """Exit code and standard error of each command, and whether torch is loaded by then; a process of its own."""
    folder = tmp_path_factory.mktemp("before")
    (folder / "w.pt").write_bytes(b"")
    torch.save({"fc.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7)}, folder / "seven.pt")
    commands = {case: arguments[:-1] for case, arguments in BEFORE_TORCH.items()}
    command = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", BEFORE_TORCH)
def test_what_is_known_without_torch_is_told_before_it_is_loaded(case, said_before_torch):
    code, said, torch_is_loaded = said_before_torch[case]
    assert BEFORE_TORCH[case][-1] in said
    assert code == 2
    assert not torch_is_loaded
