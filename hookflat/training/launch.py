"""The processes of this launch, and their threads."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hookflat import threads
from hookflat.errors import UserError
from hookflat.functional.brackets import frozen

WORK_OF_A_THREAD = 60e6
"""Floating-point operations of a forward pass on a batch that are worth another thread."""


def accelerator() -> Accelerator:
    """Raises UserError when fewer processes run than the launcher was asked for."""
    environment = os.environ
    wanted = environment.get("WORLD_SIZE", "1")
    alone = "RANK" not in environment
    if alone and "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        wanted = "several"  # accelerate launch sets the address for several processes, and then starts one
    if not alone or wanted == "1":
        found = Accelerator(
            mixed_precision="no", step_scheduler_with_optimizer=False, cpu=not torch.cuda.is_available()
        )
        if found.num_processes == int(wanted):
            return found
    raise UserError(
        f"the launcher was asked for {wanted} processes, but started one: without GPUs, use "
        "ACCELERATE_USE_CPU=true python -m torch.distributed.run --standalone --nproc-per-node N -m hookflat run ..."
    )


def fitting_threads(network: nn.Module, images: Tensor) -> int:
    """The threads that passes of `network` over a batch of `images` (n, C, H, W) are worth."""
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second to import

    with frozen(network), torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(images[:1])
    return max(1, min(threads.limit(), round(len(images) * counted.get_total_flops() / WORK_OF_A_THREAD)))
