"""The network against the data, and the threads that it is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hookflat import threads
from hookflat.errors import UserError
from hookflat.functional.brackets import frozen, global_state_restored
from hookflat.functional.data import Data, Images

WORK_OF_A_THREAD = 60e6
"""Floating-point operations of a forward pass on a batch that are worth another thread."""

CHOICES = "see the options of [model], and data.size, data.channels, data.classes where the data has them"


def check_made(network: nn.Module, name: str) -> None:
    """Raises UserError where the network of model plugin `name` has no weights yet."""
    if any(isinstance(p, nn.UninitializedParameter) for p in network.parameters()):
        raise UserError(f"model {name!r} has lazy layers without weights: pass an image through it in build_model")


def check_fit(network: nn.Module, name: str, data: Data) -> None:
    """Raises UserError where the network of model plugin `name` does not take the images, or has other classes.

    One pass over two training images, in evaluation mode.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    shape, classes = data.train.shape, data.num_classes
    x = data.train.part(0, 2).__getitems__(torch.arange(min(2, len(data.train))))[0].to(device)
    try:
        with frozen(network), torch.no_grad(), global_state_restored():
            logits = network(x)
    except Exception as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {name!r} does not take the data's images {shape}: {told} ({CHOICES})") from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        got = f"{tuple(logits.shape[1:])}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"model {name!r} does not fit the data: for an image {shape} it gives {got}, and the data has {classes} "
            f"classes: a network gives one logit for each ({CHOICES})"
        )
    if not logits.isfinite().all():
        raise UserError(f"model {name!r} gives logits that are not finite before any training: look at its weights")


def forward_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a forward pass of one image of `images` (n, C, H, W); 2 a multiplication and sum."""
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second to import

    with frozen(network), torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(images[:1])
    return counted.get_total_flops()


def fitting_threads(network: nn.Module, images: Images) -> int:
    """The threads that passes of `network` over a batch of `images` are worth."""
    work = len(images) * forward_flops(network, images.__getitems__(torch.arange(1))[0])
    return max(1, min(threads.limit(), round(work / WORK_OF_A_THREAD)))
