"""The model card: what a network is, how it was trained and measured, how it is loaded, and what it is not for."""

from __future__ import annotations

import importlib.resources
import json
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jinja2

from hookflat.errors import UserError
from hookflat.recipe.catalogue import SLOTS, Catalogue
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import quantity
from hookflat.records.results import Results
from hookflat.records.texts import read_json
from hookflat.training.console import result_rows, short, trusted

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Measured:
    """One set of numbers: `protocol` has a line for each measure, `rows` a label and a cell for each of `networks`."""

    title: str
    networks: list[str]
    rows: list[tuple[str, list[str]]]
    protocol: list[str]


@dataclass(frozen=True)
class Card:
    """What the template of the card is given.

    `repo`: USER/NAME on the hub. `parts`: slot or "plugin", name, options. `shape`: (C, H, W) of an image.
    `exported`: the file that plain torch loads, "" where there is none. `packages`: other packages that it needs.
    """

    name: str
    repo: str
    parts: list[tuple[str, str, str]]
    data: str
    classes: int | None
    shape: tuple[int, ...]
    eps: str
    norm: str
    threat: str
    epochs: int | None
    measured: list[Measured]
    networks: list[str]
    exported: str
    packages: list[str]
    made_with: dict[str, str]
    front_matter: str

    @classmethod
    def of(
        cls, folder: RunFolder, catalogue: Catalogue, *, repo: str = "", shape: tuple[int, ...], exported: str = ""
    ) -> Card:
        """Of a complete run, and of what `hookflat eval` measured of it."""
        results = folder.read_results()
        if results is None:
            raise UserError(f"{folder.path} is not complete: it has no {folder.results.name}")
        tables = folder.read_recipe()
        evaluations = [
            (f"hookflat eval ({e.path.name})", read) for e in folder.evaluations() if (read := e.read_results())
        ]
        sets = [("the recipe's own measures", results), *evaluations]
        data = tables["data"]
        return cls(
            name=repo.rpartition("/")[2] or folder.path.resolve().name,
            repo=repo or "USER/NAME",
            parts=_parts(tables),
            data=str(data.get("path") or data["name"]),
            classes=results.classes,
            shape=shape,
            eps=_radius(results.protocol.eps),
            norm=_norm(results),
            threat=_threat(tables),
            epochs=results.epochs,
            measured=[_measured(title, one) for title, one in sets],
            networks=[which for which in ("last", "best", "live") if folder.network(which)],
            exported=exported,
            packages=_packages(tables, catalogue),
            made_with=_made_with(folder.environment),
            front_matter=_front_matter(repo or folder.path.resolve().name, data, results),
        )

    def text(self) -> str:
        """Markdown with the hub's metadata in front."""
        template = importlib.resources.files("hookflat.sharing").joinpath("card.md").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
        )
        environment.filters["cell"] = _cell
        return environment.from_string(template).render(card=self)


def _parts(tables: dict[str, Any]) -> list[tuple[str, str, str]]:
    slots = [(slot, table["name"], table) for slot in SLOTS if (table := tables.get(slot))]
    plugins = [("plugin", name, table) for name, table in tables.get("plugins", {}).items()]
    return [
        (slot, name, ", ".join(f"{key} {short(value)}" for key, value in table.items() if key != "name"))
        for slot, name, table in (*slots, *plugins)
    ]


def _radius(eps: float) -> str:
    """8/255 where it is one of those."""
    return f"{eps * 255:.0f}/255" if abs(eps * 255 - round(eps * 255)) < 1e-9 else f"{eps:g}"


def _norm(results: Results) -> str:
    """Of the evaluation."""
    return {"Linf": "L-infinity"}.get(results.protocol.norm, results.protocol.norm)


def _threat(tables: dict[str, Any]) -> str:
    attack = tables.get("attack", {})
    if "eps" not in attack:
        return ""
    norm = "" if attack.get("norm", "Linf") == "Linf" else f"{attack['norm']} "
    return f"trained against {attack['name']} at {norm}eps {_radius(attack['eps'])}"


def _measured(title: str, results: Results) -> Measured:
    heads = {"last": "last epoch", "best": "early stopped"}
    networks = [
        heads.get(which, f"epoch {which}" if which.isdigit() else which)
        + (f" ({numbers.epoch})" if numbers.epoch is not None and not which.isdigit() else "")
        for which, numbers in results.models.items()
    ]
    protocol = results.protocol
    lines = [
        f"{measure}: "
        + ", ".join(
            [*(f"{key} {short(value)}" for key, value in options.items() if value not in ("", None, []))]
            + [f"the {stage.take} {count} {split} examples" for split, count in stage.examples.items()]
        )
        for stage in protocol.stages.values()
        for measure, options in stage.measures.items()
    ]
    lines.append(
        f"eps {_radius(protocol.eps)} ({_norm(results)}), step size {short(protocol.step_size)}, seed {protocol.seed}"
    )
    lines += [f"{name}, {line}" for name, n in results.models.items() for line in trusted(n, results.numbers)]
    return Measured(title, networks, result_rows(results), lines)


def _packages(tables: dict[str, Any], catalogue: Catalogue) -> list[str]:
    """Packages beside hookflat that opening the run takes; of files of plugins the names alone."""
    names = {*(tables[slot]["name"] for slot in ("data", "model")), *tables.get("plugins", ())}
    known = {source.name: source for source in catalogue}
    sources = [known[name] for name in names if name in known]
    packages = {s.package if isinstance(s.target, EntryPoint) else Path(s.package).name for s in sources}
    return sorted(package for package in packages if not package.startswith("hookflat "))


def _made_with(environment: Path) -> dict[str, str]:
    """Versions and hardware; no paths and no command line, which may hold what is nobody else's business."""
    try:
        written = read_json(environment)
        packages, gpus = written.get("packages", {}), [str(gpu) for gpu in written.get("gpus") or []]
        versions = {name: str(v) for name, v in packages.items() if name in ("hookflat", "torch", "timm") and v}
    except (ValueError, AttributeError, TypeError):  # damaged, or somebody else's
        return {}
    hardware = ", ".join(gpus) or f"{written.get('threads', '?')} CPU thread(s)"
    return versions | {"hardware": hardware}


def _front_matter(name: str, data: dict[str, Any], results: Results) -> str:
    """The hub's metadata as YAML, each value as JSON, which is YAML too."""
    path = str(data.get("path", ""))
    on_the_hub = bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()
    last = results.models.get("last")
    metrics = [
        {"type": key, "name": f"{quantity(key, results.numbers).label}, test", "value": value}
        for key, value in (last.test if last else {}).items()
        if key in results.numbers and value == value  # noqa: PLR0124 a number that is known
    ]
    described = {"name": path if on_the_hub else data["name"], "type": path if on_the_hub else data["name"]}
    entry = {"task": {"type": "image-classification"}, "dataset": described, "metrics": metrics}
    fields: dict[str, Any] = {
        "library_name": "hookflat",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "adversarial-training", "flat-minima", results.recipe],
        **({"datasets": [path]} if on_the_hub else {}),
        **({"model-index": [{"name": name, "results": [entry]}]} if metrics else {}),
    }
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())


def _cell(text: str) -> str:
    """Text in a cell of a table, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", str(text).replace("\n", " "))
