"""How large the weights are, and how far training moved them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hookflat.functional.neighborhood import layers


def weight_norm(model: nn.Module) -> float:
    """The L2 norm of all weights that `layers` has, biases included, in double precision.

    The Frobenius norm of Jiang et al. 2020 (arXiv 1912.02178). Not invariant to rescaling.
    """
    return _norm([w.detach().double() for w in layers(model).values()])


def distance_from_initialization(model: nn.Module, initial: Mapping[str, Tensor]) -> float:
    """The L2 distance of the same weights from the `initial` ones, by name (Nagarajan and Kolter 2019, 1901.01672).

    Other names in `initial` are passed over. Raises ValueError where a weight has no initial one, or one of another
    shape, or shares its memory (`model.state_dict()` is not a copy). Not invariant to rescaling.
    """
    weights = {name: w.detach().double() for name, w in layers(model).items()}
    if strange := [name for name, w in weights.items() if name not in initial or initial[name].shape != w.shape]:
        raise ValueError(f"no initial weight of its shape for {', '.join(strange)}")
    if live := [name for name, w in layers(model).items() if w.numel() and initial[name].data_ptr() == w.data_ptr()]:
        raise ValueError(f"the initial {live[0]} is the network's own: take copy.deepcopy(model.state_dict())")
    return _norm([w - initial[name].to(w) for name, w in weights.items()])


def _norm(tensors: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(tensors).item()
