"""Commands that train and measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hookflat.cli.app import (
    Arch,
    DataSet,
    Json,
    Key,
    Normalize,
    Out,
    Plugin,
    RecipeArgument,
    Set,
    SetMeasured,
    With,
    command,
    say,
)
from hookflat.cli.completing import measure_names, protocol_names

Which = Annotated[list[str], typer.Option(help="Of a run folder: last, best, live, or an epoch. Repeatable.")]


@command()
def run(
    recipe: RecipeArgument,
    with_: With = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Out = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step, with a checkpoint and no measures.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build everything, one step, each measure on a few examples; keep nothing."),
    ] = False,
) -> None:
    """Train a recipe and measure the result. The same command again resumes it."""
    from hookflat.recipe.catalogue import Catalogue
    from hookflat.recipe.loading import load_recipe
    from hookflat.records.folder import RunFolder

    catalogue = Catalogue(plugin)
    of_data = load_recipe(recipe, overlays=with_, overrides=set_, catalogue=catalogue, tables=["data"])
    if not RunFolder(out or of_data.folder).results.exists():
        of_data.check_data()  # before other plugins are loaded, and torch with them
    loaded = load_recipe(recipe, overlays=with_, overrides=set_, catalogue=catalogue)
    from hookflat.training.entry import first_steps
    from hookflat.training.entry import run as run_recipe
    from hookflat.training.trial import dry_run as run_dry

    if dry_run:
        run_dry(loaded)
    elif max_steps is not None:
        first_steps(loaded, max_steps, folder=out)
    else:
        run_recipe(loaded, folder=out, quiet=False)


@command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run folder, hub:USER/NAME, a .safetensors or .pt file, or robustbench:ID.")
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="paper, quick, mini, full, critics, landscapes ..., or a TOML file.", autocompletion=protocol_names
        ),
    ] = "paper",
    measure: Annotated[
        list[str],
        typer.Option(help="This measure instead of a protocol. Repeatable.", autocompletion=measure_names),
    ] = [],  # noqa: B006
    which: Which = ["last"],  # noqa: B006
    arch: Arch = None,
    data: DataSet = None,
    normalize: Normalize = "none",
    key: Key = None,
    set_: SetMeasured = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Out = None,
    json: Json = False,
) -> None:
    """Measure a trained network: RLoss, RErr, flatness, curvature. The same command again goes on where it stopped."""
    from hookflat.evaluation.evaluate import evaluate as evaluate_model

    options = {"arch": arch, "data": data, "normalize": normalize, "key": key, "overrides": set_, "plugins": plugin}
    done = evaluate_model(model, which=which, protocol=protocol, measures=measure, folder=out, quiet=json, **options)
    if json:
        print(done.results.to_json())


@command()
def rescale(
    model: Annotated[str, typer.Argument(help="A run folder, or a .safetensors or .pt file.")],
    factor: Annotated[float, typer.Argument(help="Of the weights of every convolution before a batch norm.")],
    which: Annotated[str, typer.Option(help="Of a run folder: last, best, live, or an epoch.")] = "last",
    arch: Arch = None,
    data: DataSet = None,
    normalize: Normalize = "none",
    key: Key = None,
    set_: SetMeasured = [],  # noqa: B006
    plugin: Plugin = [],  # noqa: B006
    out: Out = None,
) -> None:
    """Write a network of another scale that computes the same function."""
    from hookflat.evaluation.checkpoint import Checkpoint
    from hookflat.recipe.catalogue import Catalogue

    source, catalogue = Checkpoint(model, (which,), arch, data, normalize, key), Catalogue(plugin)
    source.tables(catalogue)  # what is wrong with it is told before torch is loaded
    from hookflat.evaluation.rescaling import rescaled

    place = out or (Path("_") if source.is_on_the_hub else _beside(Path(model))).with_name(
        f"{source.name}-x{factor:g}{'' if source.is_run else '.safetensors'}"
    )
    count = rescaled(source, factor, place, set_, catalogue)
    say(f"{count} convolutions scaled by {factor:g}: {place}")


def _beside(path: Path) -> Path:
    """A path whose name can be replaced: that of "." is empty."""
    return path if path.name else path.resolve()
