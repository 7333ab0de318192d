"""Folders of runs as hookflat leaves them, without a training."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import tomli_w
from pyarrow import parquet

from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.options import build
from hookflat.reporting.analysis import analyse
from hookflat.reporting.drawings import drawings
from hookflat.reporting.gathering import gather
from hookflat.reporting.table import table1
from hookflat.reporting.words import details, verdict

MEASURES = ("clean_error", "robust_loss", "autoattack", "average_flatness", "worst_flatness", "hessian", "margins")
NUMBERS = {
    name: asdict(quantity)
    for measure in MEASURES
    for name, quantity in Catalogue().find(measure).load()().numbers().items()
}
SEVERAL = build(Catalogue().find("average_flatness").load(), {"xi": [0.25, 0.5]})
NUMBERS |= {name: asdict(quantity) for name, quantity in SEVERAL.numbers().items()}
"""What the shipped measures declare."""

STAGES = {"robustness": {"examples": {"test": 200, "train": 100}, "measures": {"robust_loss": {"steps": 20}}}}
PROTOCOL = {"eps": 0.15, "step_size": 0.0335, "batch_size": 250, "seed": 0, "stages": STAGES}


def network(rerr, rloss, flatness, *, train=0.1, clean=0.05, **more):
    test = {"clean_error": clean, "rloss": rloss, "rerr_autoattack": rerr, "average_flatness": flatness} | more
    return {
        "epoch": 10,
        "seconds": {"test/robust_loss": 6.0},
        "test": test | {"average_flatness_stderr": 0.01},
        "train": {"rloss": train, "rerr_autoattack": train},
        "gap": {"rloss": rloss - train, "rerr_autoattack": rerr - train},
    }


def write(folder, method, seed=0, *, last=None, best=None, protocol=PROTOCOL, shipped=False, **options):
    """A run as `hookflat run` and `hookflat eval` leave it; `shipped`: with the tables of the recipe of its name."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    recipe = {"run": {"epochs": 10}, "data": {"name": "digits"}, "loss": {"name": "at"}}
    recipe = load_recipe(method).tables if shipped else recipe
    recipe["run"]["seed"] = seed
    for key, value in options.items():
        table, _, name = key.partition("__")
        recipe.setdefault(table, {})[name] = value
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (folder / "environment.json").write_text(json.dumps({"command": ["hookflat", "run"], "packages": {"timm": None}}))
    own = {
        "recipe": method,
        "seconds": {"training": 90.0},
        "protocol": PROTOCOL | {"stages": {}},
        "models": {"last": {}},
        "numbers": NUMBERS,
    }
    (folder / "eval.json").write_text(json.dumps(own))
    models = {"last": last or network(0.4, 2.0, 1.0)} | ({"best": best} if best else {})
    return measured(folder, models, protocol=protocol)


def measured(folder, models, evaluation="digits-last-best", protocol=PROTOCOL, **more):
    (folder / "eval" / evaluation).mkdir(parents=True)
    results = {"recipe": folder.name, "classes": 10, "protocol": protocol, "models": models, "model": str(folder)}
    stages = [stage["measures"] for stage in protocol["stages"].values()]
    chosen = [build(Catalogue().find("autoattack").load(), m["autoattack"]) for m in stages if "autoattack" in m]
    results["numbers"] = NUMBERS | {n: asdict(q) for plugin in chosen for n, q in plugin.numbers().items()}
    (folder / "eval" / evaluation / "eval.json").write_text(json.dumps(results | more))
    return folder


def staged(**stages):
    """PROTOCOL with other stages."""
    return PROTOCOL | {"stages": stages}


def records(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def a_study(folder, relation, methods=12, seeds=3, noise=0.05):
    """Methods whose RLoss is `relation` of their flatness."""
    rng = np.random.default_rng(0)
    for i in range(methods):
        for seed in range(seeds):
            flatness = 0.5 + 0.2 * i + 0.02 * rng.normal()
            rloss = relation(flatness) + noise * rng.normal()
            other = {"worst_flatness": 0.01 * rng.random()}
            last = network(0.2 + 0.1 * rloss, rloss, flatness, clean=0.05 + 0.01 * rng.random(), **other)
            best = network(0.2, 0.5 * rloss, 0.5 * flatness, clean=0.05)
            write(folder / f"m{i}-{seed}", f"m{i}", seed, last=last, best=best)
    return folder


def drawn(folder):
    gathered = gather([folder])
    table = table1(gathered)
    return {d.name: d for d in drawings(gathered, table)}


def told(folder, resamples=500):
    """The verdict, then its details."""
    gathered = gather([folder])
    analysis = analyse(gathered, resamples)
    return [*verdict(analysis, gathered), *details(analysis, gathered)]


def landscape(folder, columns, **about):
    """A table of RLoss along directions, as the measure keeps it in a folder of results."""
    (folder / "tables").mkdir(parents=True)
    table = pa.table(columns).replace_schema_metadata({"hookflat": json.dumps({"radius": 0.5} | about)})
    parquet.write_table(table, folder / "tables" / "last-test-landscape_layer.parquet")
