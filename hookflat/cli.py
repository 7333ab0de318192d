"""The command line. torch is imported by the commands that need it, not here."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hookflat.errors import TrainingFailed, UserError

app = typer.Typer(
    help="Adversarial training as composable plugins, and the flatness of the robust loss.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
_out = Console(highlight=False, soft_wrap=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A TOML file, or the name of a shipped recipe.", show_default=False)
]
With = Annotated[list[str], typer.Option("--with", help="A recipe laid over it, such as scales/cifar10. Repeatable.")]
Set = Annotated[list[str], typer.Option("--set", help="One value: loss.beta=3. Repeatable.")]
Plugin = Annotated[list[Path], typer.Option("--plugin", help="A Python file with plugin classes. Repeatable.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line; errors of the user's end with exit code 2, a failed training with 3."""
    debug = "--debug" in sys.argv
    try:
        app()
    except (UserError, TrainingFailed) as error:
        if debug:
            raise
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, TrainingFailed):
            print(f"hookflat: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, TrainingFailed) else 2)


@app.command()
def run(
    recipe: RecipeArgument,
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="The run's folder, instead of the recipe's.")] = None,
    debug: Debug = False,
) -> None:
    """Train a recipe and measure the result. The same command again resumes it."""
    _quiet_libraries()
    loaded = _load(recipe, with_, set_, plugin)
    from hookflat.training.entry import run as run_recipe

    run_recipe(loaded, plugins=plugin, folder=out, quiet=False)


Which = Annotated[list[str], typer.Option(help="Of a run folder: last, best, live, or an epoch. Repeatable.")]
Arch = Annotated[str | None, typer.Option(help="Of a file: timm:NAME, or a model plugin such as resnet18.")]
DataSet = Annotated[str | None, typer.Option("--data", help="Of a file: a folder of images, a hub id, or digits.")]
Normalize = Annotated[str, typer.Option(help="Of a file without normalisation: none, data, or MEAN,.../STD,...")]
Key = Annotated[str | None, typer.Option(help="Of a file with several sets of weights: which.")]


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a .safetensors or .pt file, or robustbench:ID.")],
    protocol: Annotated[str, typer.Option(help="paper, quick, full, landscapes, or a TOML file.")] = "paper",
    measure: Annotated[list[str], typer.Option(help="This measure instead of a protocol. Repeatable.")] = [],  # noqa: B006
    which: Which = ["last"],  # noqa: B006
    arch: Arch = None,
    data: DataSet = None,
    normalize: Normalize = "none",
    key: Key = None,
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="The folder of the results.")] = None,
    debug: Debug = False,
) -> None:
    """Measure a trained network: RLoss, RErr, flatness, curvature. The same command again goes on where it stopped."""
    _quiet_libraries()
    from hookflat.evaluation.evaluate import evaluate as evaluate_model

    options = {"arch": arch, "data": data, "normalize": normalize, "key": key, "overrides": set_, "plugins": plugin}
    evaluate_model(model, which=which, protocol=protocol, measures=measure, folder=out, quiet=False, **options)


@app.command()
def rescale(
    model: Annotated[str, typer.Argument(help="A run folder, or a .safetensors or .pt file.")],
    factor: Annotated[float, typer.Argument(help="Of the weights of every convolution before a batch norm.")],
    which: Annotated[str, typer.Option(help="Of a run folder: last, best, live, or an epoch.")] = "last",
    arch: Arch = None,
    data: DataSet = None,
    normalize: Normalize = "none",
    key: Key = None,
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Where to write it.")] = None,
    debug: Debug = False,
) -> None:
    """Write a network of another scale that computes the same function."""
    _quiet_libraries()
    from hookflat.evaluation.evaluate import Source
    from hookflat.evaluation.rescaling import rescaled
    from hookflat.recipe.catalogue import Catalogue

    source = Source(model, (which,), arch, data, normalize, key)
    place = out or Path(model).with_name(f"{source.name}-x{factor:g}{'' if source.is_run else '.safetensors'}")
    count = rescaled(source, factor, place, set_, Catalogue(tuple(plugin)))
    _out.print(f"{count} convolutions scaled by {factor:g}: {place}", markup=False)


@app.command()
def study(
    study: Annotated[str, typer.Argument(help="A TOML file, or a shipped study such as table1.")],
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    protocol: Annotated[str, typer.Option(help="Of hookflat eval after each run, instead of the study's.")] = "",
    out: Annotated[Path | None, typer.Option(help="The folder of the runs, instead of the study's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores or a GPU.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Of each training.")] = 1,
    launcher: Annotated[str, typer.Option(help="here, or slurm (through submitit).")] = "here",
    slurm: Annotated[list[str], typer.Option(help="timeout_min=600, slurm_partition=gpu ... Repeatable.")] = [],  # noqa: B006
    plan: Annotated[bool, typer.Option("--plan", help="Only show what there is and what is left.")] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Make runs of a changed recipe anew, the old ones aside.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train and measure everything of a study that is missing. The same command again goes on."""
    from collections import Counter

    from hookflat.recipe.merging import assignment
    from hookflat.studies import execution as making
    from hookflat.studies import study as studies

    if launcher not in ("here", "slurm"):
        raise UserError(f"--launcher {launcher}: should be here or slurm")
    found = studies.read_study(study, overlays=with_, overrides=set_, plugins=plugin, protocol=protocol, folder=out)
    states, hours = making.plan(found)
    _out.print(f"{found.name}: {len(found.jobs)} runs in {found.folder}", markup=False)
    counts = Counter(states.values())
    left = f", about {hours / jobs:.1f} hours left" if hours else ""
    _out.print("  " + ", ".join(f"{count} {state}" for state, count in counts.items()) + left, markup=False)
    changed = [job for job in found.jobs if states[job.name] == "changed"]
    for job in changed:
        _out.print(f"changed  {job.name}: {'; '.join([*job.changes(), *job.protocol_changes()][:3])}", markup=False)
    if changed and not redo:
        _out.print("  --redo moves them aside and makes them anew", markup=False)
    if plan:
        for name, state in states.items():
            _out.print(f"{state:<8} {name}", markup=False)
        return
    if launcher == "slurm":
        submitted = making.submit(found, processes=processes, redo=redo, **dict(assignment(s) for s in slurm))
        _out.print(f"{len(submitted)} jobs submitted; --plan shows how far they are", markup=False)
        return
    say = lambda line: _out.print(line, markup=False)
    ended = making.make(found, workers=jobs, processes=processes, redo=redo, say=say)
    for name in (name for name, state in ended.items() if state == "elsewhere"):
        say(f"elsewhere {name}: another process is making it; the same command again goes on with what it leaves")
    failed = [name for name, state in ended.items() if state == "failed"]
    _out.print(", ".join(f"{count} {state}" for state, count in Counter(ended.values()).items()), markup=False)
    if failed:
        raise TrainingFailed(
            f"{len(failed)} of {len(ended)} runs failed: {', '.join(failed)}; the same command retries"
        )


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs (a study's), or run folders.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it, instead of report/ in the first.")] = None,
    protocol: Annotated[str, typer.Option(help="Use the numbers of this one of hookflat eval's.")] = "",
    debug: Debug = False,
) -> None:
    """The paper's table, figures and statistics from runs, as a page; and what they say of the claim."""
    from hookflat.reporting import report as report_on

    written = report_on(folders, folder=out, protocol=protocol)
    for text in written.verdict:
        _out.print(text, markup=False)
    for name, why in written.left_out:
        _out.print(f"left out  {name}: {why}", markup=False)
    _out.print(f"{written.page}, and figures, tables and statistics beside it", markup=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    debug: Debug = False,
) -> None:
    """The recipe lines and the numbers in which runs differ."""
    from hookflat.reporting.comparing import compare as compare_runs

    if len(runs) < 2:
        raise UserError("compare takes two run folders or more")
    lines, numbers = compare_runs(runs)
    for title, rows in (("recipe", lines), ("numbers", numbers)):
        if not rows:
            _out.print(f"{title}: the same", markup=False)
            continue
        table = Table(title, *(run.name for run in runs), box=None, pad_edge=False)
        for name, values in rows:
            table.add_row(name, *(_cell(value) for value in values))
        _wide().print(table)


@app.command()
def show(
    recipe: RecipeArgument,
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Print a resolved recipe, where each value came from, and the hooks in call order."""
    loaded = _load(recipe, with_, set_, plugin)
    from hookflat.recipe.catalogue import Hooks
    from hookflat.training.core import Core

    for path, table in _sections(loaded.tables):
        _out.print(f"\n[{'.'.join(path)}]", markup=False, style="bold")
        for key, value in table.items():
            line = f"{key} = {_toml(value)}"
            _out.print(f"{line:<44} # {loaded.origin((*path, key))}", markup=False)
    _out.print("\nhooks, in call order", style="bold")
    for hook, names in Hooks(loaded.registered() | {"core": Core()}).order().items():
        _out.print(f"  {hook:<18} {', '.join(names)}", markup=False)
    _out.print("measures", style="bold")
    for stage, measures in loaded.measures.items():
        every = loaded.stages[stage].every
        _out.print(f"  {stage:<18} {', '.join(measures)} ({'at the end' if every is None else f'every {every:g}'})")


@app.command()
def plugins(
    name: Annotated[str | None, typer.Argument(help="Show the options of this plugin.", show_default=False)] = None,
    plugin: Plugin = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List the installed plugins, or the options of one."""
    from hookflat.recipe.catalogue import Catalogue, hooks_of, kind_of

    catalogue = Catalogue(tuple(plugin))
    if name is None:
        table = Table("name", "kind", "what it does", "source", "package", box=None, pad_edge=False)
        broken = []
        for source in catalogue:
            try:
                cls = source.load()
                table.add_row(source.name, kind_of(cls), _summary(cls), getattr(cls, "paper", ""), source.package)
            except UserError as error:
                broken.append(str(error))
        _wide().print(table)
        for message in broken:
            print(f"hookflat: left out: {message}", file=sys.stderr)
        return
    from hookflat.recipe.options import describe
    from hookflat.recipe.shipped import recipes_naming, title

    source = catalogue.find(name)
    cls = source.load()
    _out.print(f"{name} ({kind_of(cls)}, {source.package})", style="bold")
    _out.print(_text(cls), markup=False)
    if paper := getattr(cls, "paper", ""):
        _out.print(f"source: {paper}", markup=False)
    _out.print(f"hooks: {', '.join(hooks_of(cls))}")
    for path in recipes_naming(name):
        _out.print(f"recipe {path.stem}: {title(path)}", markup=False)
    _out.print()
    table = Table("option", "type", "default", "range", "meaning", box=None, pad_edge=False)
    for option in describe(cls):
        table.add_row(option.name, option.type, option.default, option.bounds, option.description)
    _wide().print(table)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Copy this recipe here.", show_default=False)] = None,
    to: Annotated[Path, typer.Option(help="Where to copy it.")] = Path("."),
    debug: Debug = False,
) -> None:
    """List the shipped recipes, or copy one (with what it extends) into a folder."""
    from hookflat.recipe.shipped import find_recipe, recipe_folders, title

    folders = recipe_folders()
    if name is None:
        for package, folder in folders:
            for path in sorted(folder.rglob("*.toml")):
                origin = "" if package == "hookflat" else f" ({package})"
                _out.print(f"{path.relative_to(folder).with_suffix('')!s:<24} {title(path)}{origin}", markup=False)
        return
    for path in _with_bases(find_recipe(name)):
        home = next((f for _, f in folders if path.is_relative_to(f)), path.parent)
        target = to / path.relative_to(home)
        if target.exists():
            raise UserError(f"{target} exists already: remove it, or choose another folder with --to")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise UserError(
                f"{target} cannot be written: {error.strerror} (choose another folder with --to)"
            ) from error
        _out.print(str(target), markup=False)


def _load(recipe: str, with_: list[str], set_: list[str], plugin: list[Path]) -> Any:
    from hookflat.recipe.catalogue import Catalogue
    from hookflat.recipe.loading import load

    return load(recipe, overlays=with_, overrides=set_, catalogue=Catalogue(tuple(plugin)))


def _quiet_libraries() -> None:
    """Libraries' progress bars and notices are not this run's output."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def _sections(tables: dict[str, Any], path: tuple[str, ...] = ()) -> Any:
    """(path, plain values) of every table, depth first."""
    plain = {k: v for k, v in tables.items() if not isinstance(v, dict)}
    if path and path != ("plugins",):
        yield path, plain
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _sections(value, (*path, key))


def _with_bases(path: Path) -> list[Path]:
    import tomllib

    bases = tomllib.loads(path.read_text(encoding="utf-8")).get("extends", [])
    found = [path]
    for base in [bases] if isinstance(bases, str) else bases:
        beside = path.parent / base
        found += _with_bases(beside) if beside.is_file() else []  # a shipped one is found by its name
    return found


def _summary(cls: type) -> str:
    return _text(cls).split("\n\n")[0].replace("\n", " ")


def _text(cls: type) -> str:
    import inspect

    return inspect.getdoc(cls) or ""


def _toml(value: Any) -> str:
    """A number, string, boolean or list of them, as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else _toml(value)


def _wide() -> Console:
    """A console that does not wrap tables where the output is a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)
