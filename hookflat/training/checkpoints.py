"""Checkpoints: everything from which a restart goes on as if never stopped."""

from __future__ import annotations

import io
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hookflat.errors import TrainingFailed, UserError
from hookflat.reading.weights import check_finite
from hookflat.records.checkpoints import MODEL, STATE
from hookflat.records.weights import save_weights
from hookflat.terminal import clipped
from hookflat.training.run import Run


def save(run: Run) -> None:
    """Write a checkpoint beside the last one and put it into its place."""
    from accelerate.utils import gather_object

    run.finite.see("after_step", *run.network.state_dict().values())
    run.check()
    run.loss_sum = run.accelerator.reduce(run.loss_sum, "mean")  # every process goes on from what is saved
    generators = gather_object([_generators(run.device)])
    if run.main:
        with run.folder.new_checkpoint(run.recipe, run.step, run.epoch) as place:
            save_weights(place / MODEL, run.network)
            state = _state(run, generators)
            with (place / STATE).open("wb") as file:  # through Python, whose errors say what the disk refused
                torch.save(state, file)
            if not run.saved:
                _check_readable(place / STATE, state)
    run.saved = True
    run.accelerator.wait_for_everyone()


def _state(run: Run, generators: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "step": run.step,
        "epoch": run.epoch,
        "processes": run.processes,
        "batches": [run.steps_per_epoch, sum(run.batch_sizes)],
        "loss_scale": run.loss_scale.state_dict() if run.loss_scale else None,
        "loss_sum": run.loss_sum.cpu(),
        "auto": run.auto,
        "lr": run.lr,
        "seconds": time.perf_counter() - run.began,
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "plugins": {n: p.state_dict() for n, p in run.plugins.items() if hasattr(p, "state_dict")},
        "generators": generators,
    }


def _read(file: Path | io.BytesIO) -> dict[str, Any]:
    """No code in it is run: torch makes tensors, numbers, texts and containers of them, and refuses the rest."""
    return torch.load(file, map_location="cpu", weights_only=True)


def _check_readable(file: Path, state: dict[str, Any]) -> None:
    """Raises TrainingFailed before hours are trained that no checkpoint could bring back."""
    try:
        _read(file)
    except pickle.UnpicklingError as error:
        refused = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "another class")
        raise TrainingFailed(
            f"the state of {_unreadable(state)} could not be read back without running code "
            f"({refused}): state_dict() may hold tensors, numbers, texts, and lists and dictionaries of them"
        ) from None


def _unreadable(state: dict[str, Any]) -> str:
    """Whose part of the state cannot be read back."""
    parts = {"the optimizer": state["optimizer"], "the schedule": state["schedule"]}
    for whose, part in (parts | {f"plugin {name!r}": of for name, of in state["plugins"].items()}).items():
        kept = io.BytesIO()
        torch.save(part, kept)
        kept.seek(0)
        try:
            _read(kept)
        except pickle.UnpicklingError:
            return whose
    return "the run"


def check_processes(run: Run, state: dict[str, Any]) -> None:
    """Raises UserError where the training cannot go on, on this number of processes, as the one that it was.

    Attacks and averages are the same on any number, but batch norm normalises by each process's part, and a last batch
    that does not divide by the processes loses examples, or has too few.
    """
    before = state.get("processes", run.processes)
    if before == run.processes or state["step"] == run.total_steps:
        return
    norm = next((n for n, m in run.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    if norm is not None:
        size = run.batch_size
        raise UserError(
            f"{run.folder.path} was begun on {before} processes, this is {run.processes}: batch norm (layer {norm!r}) "
            f"normalises by each process's part of the batch, {size // before} examples there and "
            f"{size // run.processes} here, which is another training. Start it on {before}, or choose another --out"
        )
    steps, examples = state.get("batches", here := [run.steps_per_epoch, sum(run.batch_sizes)])
    if [steps, examples] != here:
        raise UserError(
            f"{run.folder.path} was begun on {before} processes, this is {run.processes}: an epoch had {steps} batches "
            f"with {examples} examples there and has {here[0]} with {here[1]} here. Start it on {before}, or choose "
            "another --out"
        )


def resume(run: Run) -> bool:
    """Go on from the newest checkpoint that is as it was written, if there is one; says what is damaged.

    Raises UserError where there are checkpoints, but all are damaged.
    """
    checkpoint = _agreed(run)
    whole = run.folder.rewind(checkpoint)
    if checkpoint is None:
        return False
    if not whole:
        run.console.say(f"{run.folder.metrics} was cut or changed: it is back as the checkpoint kept it")
    try:
        weights, state = load_file(checkpoint / MODEL), _read(checkpoint / STATE)
        check_processes(run, state)
        check_finite(weights, str(checkpoint / MODEL))
        _restore(run, weights, state)
    except (UserError, OSError):
        raise
    except Exception as error:  # checksums say that it is as somebody wrote it, not that a run did
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{checkpoint} does not hold the state of this run: {clipped(first, 200)}") from error
    run.accelerator.wait_for_everyone()  # nobody writes before all have read
    return True


def _restore(run: Run, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    step, epoch = state["step"], state["epoch"]
    if not (0 <= epoch <= run.epochs and 0 <= step - epoch * run.steps_per_epoch <= run.steps_per_epoch):
        raise ValueError(f"step {step} is not in epoch {epoch}")
    run.network.load_state_dict(weights)
    run.step, run.epoch, run.lr = step, epoch, state["lr"]
    run.loss_sum.copy_(state["loss_sum"])
    run.auto = state.get("auto")
    if run.loss_scale:
        run.loss_scale.load_state_dict(state["loss_scale"])
    run.began = time.perf_counter() - state["seconds"]
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    for name, plugin_state in state["plugins"].items():
        try:
            run.plugins[name].load_state_dict(plugin_state)
        except Exception as error:
            raise ValueError(f"plugin {name!r}, load_state_dict: {type(error).__name__}: {error}") from error
    if run.rank < len(state["generators"]):  # another number of processes: what is new begins as built
        _set_generators(state["generators"][run.rank], run.device)


def _agreed(run: Run) -> Path | None:
    """The checkpoint that the main process found usable, for all."""
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, "", []]
    if run.main:
        try:
            answer[0], answer[2] = run.folder.resumable.usable()
        except UserError as error:
            answer[1] = str(error)
    checkpoint, told, faults = broadcast_object_list(answer)
    if told:
        raise UserError(told)
    for fault in faults:
        run.console.say(f"{fault}; going on from the one before it, {checkpoint.name}")
    return checkpoint


def _generators(device: torch.device) -> dict[str, Any]:
    """The global generators of a process: nothing of hookflat draws from them, a network of others may."""
    numpy: Any = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_generators(states: dict[str, Any], device: torch.device) -> None:
    random.setstate(states["random"])
    name, key, *place = states["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *place))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
