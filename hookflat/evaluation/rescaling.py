"""Functionally equal networks of another scale, to see which measures of flatness the scale of weights deceives."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from hookflat.errors import UserError
from hookflat.evaluation.evaluate import Source
from hookflat.functional.attack_view import conv_norm_pairs
from hookflat.functional.layers import RecenteredBatchNorm2d
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load
from hookflat.training.entry import global_generators_restored
from hookflat.training.run import Run


@torch.no_grad()
def rescale(model: nn.Module, factor: float) -> int:
    """Multiply the weights of every convolution that a batch norm follows by `factor`, in place; how many there are.

    The batch norm's statistics follow, and its scale makes up for its `eps`, so that in evaluation mode the network is
    the same function up to rounding (protocol, section 4.7, which scales the logits' layer as well and thereby changes
    RLoss). Raises ValueError for a factor that is not positive, and where no batch norm follows a convolution.
    """
    if not factor > 0:
        raise ValueError(f"the factor should be positive, not {factor}")
    pairs = conv_norm_pairs(model)
    if not pairs:
        raise ValueError("no convolution with a batch norm behind it was found: there is nothing to rescale")
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight *= factor
        if conv.bias is not None:
            conv.bias *= factor
        before = norm.running_var.clone()
        norm.running_mean *= factor
        norm.running_var *= factor**2
        correction = (norm.running_var + norm.eps).sqrt() / (factor * (before + norm.eps).sqrt())
        if isinstance(norm, RecenteredBatchNorm2d):
            norm.weight.copy_(norm.scale * correction - 1)
        elif norm.affine:
            norm.weight.mul_(correction)
    return len(pairs)


def rescaled(
    source: Source, factor: float, out: Path, overrides: Iterable[str] = (), catalogue: Catalogue | None = None
) -> int:
    """Write the rescaled network of `source`: of a run folder as another run folder, of a file as a safetensors file.

    `hookflat eval` measures it like the original. Returns the number of rescaled convolutions. Raises UserError for a
    network that cannot be rescaled, and an `out` that exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another with --out")
    if source.is_robustbench or len(source.which) > 1:
        raise UserError(f"{source.model}: rescale takes one network of a run folder, or a file of weights")
    recipe = load(source.tables(), overrides=overrides, catalogue=catalogue, needs=("data", "model"))
    run = Run(recipe, out)
    with global_generators_restored():
        run.build_network()
    _, about, network = next(iter(source.networks(run)))
    about |= {"rescaled": factor * about.get("rescaled", 1.0)}
    try:
        count = rescale(network, factor)
    except ValueError as error:
        raise UserError(f"{source.model}: {error}") from error
    if not source.is_run:
        run.folder.save_weights(out, network, **about)
        return count
    beside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    run.folder.save_weights(beside / "model.safetensors", network, **about)
    shutil.copyfile(Path(source.model, "recipe.toml"), beside / "recipe.toml")
    beside.rename(out)
    return count
