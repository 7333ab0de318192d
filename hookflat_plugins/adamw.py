"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from hookflat import Decay, Number, Run, Share, UserError, hookimpl


@dataclass(eq=False)
class AdamW:
    """Adam with decoupled weight decay, on matrices and kernels alone: norms and biases do not decay.

    `layer_decay` below 1 is for fine-tuning: the learning rate of layer l of L is lr layer_decay^(L - l), with stem,
    blocks and classifier as the layers that timm's networks say they have; the embeddings belong to the stem. A stem
    that starts at random beside pretrained layers has the full rate, as the classifier.
    """

    paper: ClassVar[str] = (
        "Loshchilov and Hutter 2019, arXiv 1711.05101; defaults of Singh et al. 2023; layer-wise rates: Clark et al. "
        "2020, arXiv 2003.10555, Bao et al. 2021, arXiv 2106.08254"
    )

    lr: Annotated[Number, Field(gt=0, description="learning rate before any schedule")] = 1e-3
    beta1: Annotated[Decay, Field(description="decay of the gradient's mean")] = 0.9
    beta2: Annotated[Decay, Field(description="decay of the gradient's square")] = 0.95
    weight_decay: Annotated[Number, Field(ge=0, description="of tensors with two or more dimensions")] = 0.05
    layer_decay: Annotated[Share, Field(gt=0, description="of the learning rate, a layer (timm's networks)")] = 1.0

    @hookimpl
    def build_optimizer(self, run: Run, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        depths = depths_of(run.network) if self.layer_decay < 1 else {}
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for p in parameters:
            depth, decays = depths.get(p, 0), p.dim() > 1
            rate, decay = self.lr * self.layer_decay**depth, self.weight_decay * decays
            groups.setdefault((depth, not decays), {"params": [], "lr": rate, "weight_decay": decay})
            groups[depth, not decays]["params"].append(p)
        in_order = [groups[key] for key in sorted(groups)]  # the full rate first: it is the one that is shown
        return torch.optim.AdamW(in_order, self.lr, (self.beta1, self.beta2))


def depths_of(network: nn.Module) -> dict[nn.Parameter, int]:
    """How many layers every parameter of a timm network lies before the last one."""
    from timm.models import group_parameters

    net: Any = next((m for m in network.modules() if hasattr(m, "group_matcher")), None)
    if net is None:
        raise UserError("optimizer.layer_decay: the network does not say what its layers are (timm's do): leave it 1")
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    fresh = {p for module in net.modules() if getattr(module, "fresh", False) for p in module.parameters()}
    return {p: 0 if p in fresh else last - layers[name] for name, p in net.named_parameters()}
