"""Gradients by weights and images at once, for ascents in the neighbourhood of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import islice

import torch
from torch import Tensor, nn

from hookflat.functional.attack_view import AttackView, attack_view, where_there
from hookflat.functional.brackets import differentiable
from hookflat.functional.losses import cross_entropy


class WeightGradients:
    """The gradients of the summed cross-entropy of a frozen network in evaluation mode.

    They are taken where batch norm is folded into the convolutions (`AttackView`), and are those by the network's own
    `weights`: a folded convolution is a channel's factor times the network's. Networks that cannot be folded are asked
    themselves. Call `refresh()` after the weights changed in place.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor], x: Tensor) -> None:
        """`x` (n, C, H, W): images on two of which the folded network has to agree with the network."""
        self.weights = weights
        self.net: nn.Module = model
        self.places: list[list[tuple[Tensor, Tensor | None]]] = [[(w, None)] for w in weights]
        view = attack_view(model)
        if isinstance(view, AttackView):
            with torch.no_grad():
                view(x[:2])
            if all(places := [view.places(w) for w in weights]):
                self.net, self.places = view, places

    def refresh(self) -> None:
        """Follow the weights."""
        if isinstance(self.net, AttackView):
            self.net.refresh()

    def __call__(self, x: Tensor, y: Tensor, *, inputs: bool) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The summed loss, its gradient by each of the weights, and by `x` where `inputs` are asked for.

        Each is a tensor of its own.
        """
        x = x.requires_grad_(inputs)
        leaves, factors = zip(*(place for places in self.places for place in places), strict=True)
        with differentiable(leaves), torch.enable_grad():
            loss = cross_entropy(self.net(x), y).sum()
            gradients = torch.autograd.grad(loss, [*leaves, x] if inputs else leaves, materialize_grads=True)
        by_place = gradients[: len(leaves)]
        where_there(torch._foreach_mul_, by_place, factors)
        parts = iter(by_place)
        by_weights = [reduce(torch.add, islice(parts, len(places))) for places in self.places]
        if len({id(g) for g in by_weights}) < len(by_weights):  # autograd gives the terms of a sum one tensor
            by_weights = [g.clone() for g in by_weights]
        return loss.detach(), by_weights, gradients[-1] if inputs else None
