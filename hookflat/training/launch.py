"""The processes of this launch."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from hookflat.errors import UserError
from hookflat.functional.attack_view import bf16_pays
from hookflat.recipe.recipe import RunOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hookflat.functional.choices import Precision

_UNFIT = {
    "ACCELERATE_USE_FSDP": "FSDP: weight perturbations need whole layers, and flatness the gradients of whole weights; "
    "with sharded ones autograd.grad fails and functional calls answer with the wrong weights",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed: its engine owns the backward pass and the step, and a method makes several "
    "backward passes at other weights before one step",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: it splits layers over processes, and perturbations need whole ones",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config: it splits layers over processes, and perturbations "
    "need whole ones",
}
"""What accelerate launch can be asked for and no method here survives, with the reason."""

_IN_THE_RECIPE = {
    "ACCELERATE_MIXED_PRECISION": ("no", "--mixed_precision", "precision", {"no": "fp32"}),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--gradient_accumulation_steps", "accumulation", {}),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--dynamo_backend", "compile", {"inductor": "true"}),
}
"""What it can be asked for and the recipe says: its default, its flag, the key of [run], the names of values there."""


def check_launch(options: RunOptions) -> None:
    """Raises UserError for what accelerate launch was asked for and a training with these options would not get."""
    for variable, (default, flag, key, names) in _IN_THE_RECIPE.items():
        asked = os.environ.get(variable, default).lower()
        here = str(getattr(options, key)).lower()
        if asked not in (default, here) and names.get(asked, asked) != here:
            raise UserError(
                f"accelerate was asked for {flag} {asked}, the recipe has run.{key} = {here}: the recipe decides. "
                f"Set run.{key} = {names.get(asked, asked)} there, or {flag} {default}"
            )


PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: one may decode images, or attack a batch that is harder than the others'."""


def accelerator() -> Accelerator:
    """Raises UserError where sharded networks, or more processes than run, were asked of the launcher."""
    from accelerate import Accelerator  # with its own dependencies, 0.2 s that looking at plugins does without
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    for variable, why in _UNFIT.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"accelerate was asked for {why}. Each GPU has to hold the network: choose MULTI_GPU (plain data "
                "parallelism) in accelerate config, and run.accumulation where memory is short"
            )
    environment = os.environ
    wanted = environment.get("WORLD_SIZE", "1")
    alone = "RANK" not in environment
    if alone and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        wanted = "several"  # accelerate launch sets the address for several processes, and then starts one
    if not alone or wanted == "1":
        candidate = Accelerator(
            mixed_precision="no",
            step_scheduler_with_optimizer=False,
            cpu=not torch.cuda.is_available(),
            # whatever the launcher was asked for: the run itself accumulates and compiles
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        if candidate.num_processes == int(wanted):
            return candidate
    raise UserError(
        f"the launcher was asked for {wanted} processes, but started one: without GPUs, use "
        "ACCELERATE_USE_CPU=true python -m torch.distributed.run --standalone --nproc-per-node N -m hookflat run ..."
    )


def agreed(precision: Precision, accelerator: Accelerator) -> Precision:
    """The same, "auto" decided: bf16 where it pays on every process. All of them must ask."""
    if precision != "auto":
        return precision
    pays = torch.tensor(float(bf16_pays(accelerator.device)), device=accelerator.device)
    return "bf16" if accelerator.reduce(pays, "sum") == accelerator.num_processes else "fp32"
