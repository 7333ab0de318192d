"""Images without labels beside the training set."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from filelock import FileLock, Timeout
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hookflat import (
    Batch,
    Data,
    Examples,
    FinishedRun,
    Images,
    Recipe,
    Resizing,
    Run,
    Share,
    UserError,
    fingerprint,
    hookimpl,
    load_recipe,
    load_sets,
    network_of,
)
from hookflat import run as train

_PLAIN = {"name": "pgd", "steps": 0, "start": "zero", "keep": "last"}
_PASSED_ON = ("activation", "augment", "autoaugment", "randaugment", "random_resized_crop")


@dataclass(eq=False)
class Unlabeled:
    """Unlabeled data: `fraction` of every batch is drawn from a pool of images with pseudo-labels.

    The pool is every image at `path`, or else the images of the training split that the recipe does not train on, or,
    where there are none, the last `share` of the training set, whose labels are set aside.
    Pseudo-labels are the predictions of a standard network: the run's own data, augmentation, model, optimizer and
    schedule, seed 0, trained without attacks on the labelled images alone. It is trained before the first run that
    needs it and kept as a run folder of its own in `pseudo_labels/` beside the run's folder. An epoch is as many steps
    as the labelled images make.
    """

    paper: ClassVar[str] = "Carmon et al. 2019, arXiv 1905.13736; protocol of Stutz et al. 2021, section 4.4"
    kind: ClassVar[str] = "more data"

    fraction: Annotated[Share, Field(description="of a batch, drawn from the pool with replacement")] = 0.7
    path: Annotated[str, Field(description='folder or hub id, as for images; "": the training split\'s')] = ""
    split: Annotated[str, Field(description="of the images at path")] = "train"
    images: Annotated[int, Field(ge=0, description="of the pool, the first ones; 0: all")] = 0
    share: Annotated[Share, Field(lt=1, description="of the training set, where all of it would be trained on")] = 0.5

    def __post_init__(self) -> None:
        self._pool: Tensor | None = None
        self._images: Images | None = None

    @hookimpl(wrapper=True)
    def build_data(self, run: Run) -> Generator[None, Data, Data]:
        data = yield
        stopping = run.plugins.get("early_stopping")
        if stopping is not None and getattr(stopping, "source", "test") == "train":
            raise UserError(
                "plugins.unlabeled: the network that gives the labels would train on what early_stopping holds out of "
                'the training set: set plugins.early_stopping.source = "test"'
            )
        if self.path and not self.fraction:
            return data
        if self.path:
            with run.accelerator.main_process_first():
                self._pool = self._first(self._loaded(data.train))
            return data
        if data.unused is not None:
            self._pool = data.unused(self.images) if self.fraction else None
            return data
        kept = len(data.train) - round(self.share * len(data.train))
        self._pool = self._first(data.train.x[kept:])
        return replace(data, train=data.train.part(0, kept))

    @hookimpl(wrapper=True)
    def build_optimizer(self, run: Run) -> Generator[None, Any, Any]:
        if self.fraction:  # here and not with the data: a network that is only measured needs no labels
            assert self._pool is not None
            if len(self._pool) == 0:
                raise UserError("plugins.unlabeled: the pool is empty: set path, or share above 0")
            trial = torch.zeros(len(self._pool), dtype=torch.int64)
            labels = trial if run.trial else self._pseudo_labels(run, self._pool)
            self._images = Images(self._pool, labels).on(run.device)
        return (yield)

    @hookimpl(tryfirst=True)
    def transform_batch(self, run: Run, batch: Batch) -> None:
        if self._images is None:
            return
        drawn = (run.uniform("unlabeled", batch) * len(self._images)).long()
        taken = batch.interleaved(int(self.fraction * batch.global_size)) & batch.labeled
        batch.replace(taken, *self._images.at(drawn.to(self._images.y.device), run.device))

    # --- the pool and its labels --------------------------------------------------------------------------------------

    def _first(self, pool: Tensor) -> Tensor:
        return pool[: self.images] if self.images else pool

    def _loaded(self, like: Images) -> Tensor:
        source = f"plugins.unlabeled.path = {self.path!r}"
        images = load_sets(self.path, (self.split,), "plugins.unlabeled.path")[self.split]
        column = images.column("image", None, "images of one column there")
        pool = images.pixels(column, Resizing(), "images of one size are needed there")
        if pool.shape[1:] != like.shape:
            raise UserError(f"{source}: images are {tuple(pool.shape[1:])}, those of [data] {like.shape}")
        return pool

    def _labeler(self, run: Run) -> Recipe:
        """The recipe of the network that gives the labels."""
        tables = run.recipe.tables
        asis = {name: tables[name] for name in ("data", "model", "optimizer", "schedule")}
        plugins = {n: t for n, t in tables["plugins"].items() if n in _PASSED_ON}
        plugins["unlabeled"] = tables["plugins"]["unlabeled"] | {"fraction": 0.0}
        recipe = asis | {
            "attack": _PLAIN,
            "loss": {"name": "at"},
            "plugins": plugins,
            "run": tables["run"] | {"seed": 0, "folder": "labeler"},
            "eval": {"final": {"examples": 10_000, "clean_error": {}}},
        }
        return load_recipe(recipe, name="pseudo-labels", catalogue=run.recipe.catalogue)

    def _pseudo_labels(self, run: Run, pool: Tensor) -> Tensor:
        """(N,) int64 labels of the pool, from the cache or from a network trained now."""
        recipe = self._labeler(run)
        key = fingerprint(recipe.to_toml(), *run.data.train.content(), pool)
        folder = run.folder.path.parent / "pseudo_labels" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder / "pseudo_labels.safetensors"
        with _locked(run, FileLock(f"{folder}.lock")):
            if not file.exists():
                run.console.say(f"pseudo-labels: training a standard network on {len(run.data.train)} labelled images")
                result = train(recipe, folder=folder, quiet=run.console.silent)
                self._predict(run, recipe, result, pool, file)
            run.accelerator.wait_for_everyone()
        try:
            with safe_open(file, framework="pt") as opened:
                labels, about = opened.get_tensor("labels"), json.loads(opened.metadata()["hookflat"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error}): remove it, to have the labels predicted again") from None
        run.console.say(
            f"pseudo-labels: {len(labels)} images, by the network in {folder} "
            f"(clean error {100 * about['clean_error']:.1f} % on test images)"
        )
        return labels

    def _predict(self, run: Run, recipe: Recipe, result: FinishedRun, pool: Tensor, file: Path) -> None:
        network = network_of(recipe, result.folder).eval()
        images = Images(pool, torch.zeros(len(pool), dtype=torch.int64))
        with torch.no_grad():
            batches = Examples(images, batch_size=run.recipe.eval.batch_size, device=run.device)
            labels = torch.cat([network(x).argmax(dim=1).cpu() for x, _, _ in batches])
        if run.main:
            about = {"clean_error": result.results.models["last"].test["clean_error"]}
            beside = file.with_suffix(".writing")
            beside.write_bytes(save({"labels": labels}, metadata={"hookflat": json.dumps(about)}))
            beside.replace(file)


@contextmanager
def _locked(run: Run, lock: FileLock) -> Generator[None]:
    """The main process holds the lock inside; the others wait with it, in turns shorter than their time-outs."""
    held = False
    while not held:
        if run.main:
            with suppress(Timeout):
                lock.acquire(timeout=60)
        got = torch.tensor(float(lock.is_locked), device=run.device)
        held = bool(run.accelerator.reduce(got, "sum"))
    try:
        yield
    finally:
        lock.release()
