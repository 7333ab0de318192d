"""A network as a file that plain torch loads, without this package or anybody's class."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from hookflat.errors import UserError


def export(network: nn.Module, x: torch.Tensor, file: Path) -> None:
    """Write `network` in evaluation mode by `torch.export`, for any number of images of the size of `x`.

    `x`: images (n, C, H, W) in [0, 1], two or more. The file is read back and compared on `x`. Gradients flow through
    what `torch.export.load(file).module()` gives, so that it can be attacked. Raises UserError for a network that
    `torch.export` cannot follow.
    """
    network = network.cpu().eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No complete tensor")  # the file is read back below
            expected = network(x)
            program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, file)
            again = torch.export.load(file).module()(x[1:])
    except Exception as error:  # anything may be wrong with anybody's network
        file.unlink(missing_ok=True)
        raise UserError(f"torch.export cannot follow the network: {str(error).splitlines()[0]}") from error
    if not torch.allclose(again, expected[1:], rtol=1e-3, atol=1e-4):
        file.unlink()
        raise UserError("torch.export gives a network with other logits")
