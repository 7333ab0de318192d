"""Checkpoints: everything from which a restart goes on as if never stopped."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from hookflat.errors import UserError
from hookflat.training.run import Run


def save(run: Run) -> None:
    """Write a checkpoint beside the last one and put it into its place."""
    run.finite.see("after_step", *run.network.state_dict().values())
    run.check()
    run.loss_sum = run.accelerator.reduce(run.loss_sum, "mean")  # every process goes on from what is saved
    beside = run.folder.checkpoint_beside()
    run.accelerator.wait_for_everyone()
    run.accelerator.save_state(str(beside), safe_serialization=True)
    if run.main:
        torch.save(_state(run), beside / "hookflat.pt")
    run.accelerator.wait_for_everyone()
    run.folder.finish_checkpoint(run.step, run.epoch)
    run.accelerator.wait_for_everyone()


def _state(run: Run) -> dict[str, Any]:
    states = {n: p.state_dict() for n, p in run.plugins.items() if hasattr(p, "state_dict")}
    return {
        "step": run.step,
        "epoch": run.epoch,
        "processes": run.processes,
        "cancelled": run.loss_scale.cancelled if run.loss_scale else 0,
        "loss_sum": run.loss_sum.cpu(),
        "lr": run.lr,
        "metrics": run.folder.written(),
        "seconds": time.perf_counter() - run.began,
        "plugins": states,
    }


def check_processes(run: Run, state: dict[str, Any]) -> None:
    """Raises UserError where the training cannot go on, on this number of processes, as the one that it was.

    Batches, attacks and averages are the same on any number, but batch norm normalises by each process's part.
    """
    before = state.get("processes", run.processes)
    if before == run.processes or state["step"] == run.total_steps:
        return
    norm = next((n for n, m in run.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    if norm is not None:
        size = run.recipe.run.batch_size
        raise UserError(
            f"{run.folder.path} was begun on {before} processes, this is {run.processes}: batch norm (layer {norm!r}) "
            f"normalises by each process's part of the batch, {size // before} examples there and "
            f"{size // run.processes} here, which is another training. Start it on {before}, or choose another --out"
        )


def resume(run: Run) -> bool:
    """Go on from the last checkpoint, if there is one."""
    checkpoint = run.folder.last_checkpoint()
    if checkpoint is None:
        run.folder.rewind(0)
        return False
    state = torch.load(checkpoint / "hookflat.pt", map_location="cpu", weights_only=True)
    check_processes(run, state)
    run.accelerator.load_state(str(checkpoint))
    run.step, run.epoch = state["step"], state["epoch"]
    run.loss_sum.copy_(state["loss_sum"])
    run.lr = state["lr"]
    if run.loss_scale:
        run.loss_scale.cancelled = state["cancelled"]
    run.folder.rewind(state["metrics"])
    run.began = time.perf_counter() - state["seconds"]
    for name, plugin_state in state["plugins"].items():
        run.plugins[name].load_state_dict(plugin_state)
    return True
