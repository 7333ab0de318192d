"""The attack view: the same network, made cheap to attack.

Evaluation mode, parameters frozen, batch norm folded into the convolution before it, channels-last. It shares the
tensors of the network it shows, except for the folded convolutions, which `refresh` recomputes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from hookflat.functional.layers import AuxiliaryHead, Bfloat16, RecenteredBatchNorm2d


@cache
def _foldable() -> tuple[type, ...]:
    from timm.layers.norm_act import BatchNormAct2d  # timm takes two seconds to import

    return nn.BatchNorm2d, RecenteredBatchNorm2d, BatchNormAct2d


class AttackView(nn.Module):
    """A network that computes what `model` computes in evaluation mode, up to rounding, at a lower cost.

    Call `refresh()` after the weights or the statistics of `model` changed in place. Where the network cannot be
    traced, or where the folded one disagrees on its first batch, nothing is folded. `bf16` runs convolutions in
    bfloat16;
    `compile` hands the view to `torch.compile`.
    """

    def __init__(self, model: nn.Module, *, bf16: bool = False, compile: bool = False) -> None:
        super().__init__()
        plain = _shared_copy(model)
        folded, self._folds = _fold(plain, model)
        self._plain = plain if self._folds else None
        self._bf16 = bf16
        self._compile = compile
        self._use(folded)
        self.refresh()

    def _use(self, net: nn.Module) -> None:
        wrapped = self._wrapped(net)
        self.view = torch.compile(wrapped) if self._compile else wrapped
        super().train(False)

    def _wrapped(self, net: nn.Module) -> nn.Module:
        return Bfloat16(net) if self._bf16 else net

    def train(self, mode: bool = True) -> AttackView:
        """Always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the folded convolutions from the current weights and statistics."""
        for fold in self._folds:
            fold.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        if self._plain is not None:
            self._check(x.detach())
        return self.view(x)

    @torch.no_grad()
    def _check(self, x: Tensor) -> None:
        """Once: the folded network must agree with the plain one on the first batch it sees."""
        plain, self._plain = self._plain, None
        assert plain is not None
        expected, got = self._wrapped(plain).eval()(x), self.view(x)
        tolerance = 0.1 if self._bf16 else 1e-3
        if (got - expected).abs().max() > tolerance * (1 + expected.abs().max()):
            self._folds = []
            self._use(plain)


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the model's own memory, frozen."""
    memo: dict[int, Tensor] = {id(b): b for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    computed = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf)
    memo |= {id(v): v.detach() for v in computed}  # weight norm keeps one, which copying refuses
    return copy.deepcopy(model, memo).eval()


@dataclass
class _Fold:
    """One convolution of the view with the batch norm behind it, both read from the live network."""

    view: nn.Conv2d
    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def refresh(self) -> None:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert self.view.bias is not None
        scale = norm.scale if isinstance(norm, RecenteredBatchNorm2d) else norm.weight
        factor = torch.rsqrt(norm.running_var + norm.eps) * (1 if scale is None else scale)
        shift = -norm.running_mean if self.conv.bias is None else self.conv.bias - norm.running_mean
        torch.mul(self.conv.weight, factor.view(-1, 1, 1, 1), out=self.view.weight)
        bias = shift * factor if norm.bias is None else shift * factor + norm.bias
        self.view.bias.copy_(bias)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_foldable(), AuxiliaryHead)) or super().is_leaf_module(m, module_qualified_name)


def conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution of `model` with the batch norm that directly follows it, where each is used once.

    None where the network cannot be traced.
    """
    plain = _shared_copy(model)
    graph = _traced(plain)
    found = _pairs(graph, plain) if graph is not None else []
    return [(cast(nn.Conv2d, model.get_submodule(c)), cast(nn.BatchNorm2d, model.get_submodule(n))) for c, n in found]


def _traced(plain: nn.Module) -> fx.Graph | None:
    if any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules()):
        return None  # tracing would lose them
    try:
        graph = _Tracer().trace(plain)
    except Exception:  # networks that fx cannot trace are attacked unfolded
        return None
    if any("_tensor_constant" in str(n.target) for n in graph.nodes):
        return None  # made inside forward, perhaps at random: a trace would fix it
    return graph


def _pairs(graph: fx.Graph, net: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that directly follow them."""
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    found = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (net.get_submodule(name) for name in names)
        once = all(calls.count(name) == 1 for name in names)
        if type(conv) is nn.Conv2d and type(norm) in _foldable() and once:
            assert isinstance(norm, nn.BatchNorm2d)
            if norm.track_running_stats:
                found.append(names)
    return found


def _fold(plain: nn.Module, live: nn.Module) -> tuple[nn.Module, list[_Fold]]:
    """Trace `plain` and fold every batch norm that directly follows a convolution used once."""
    graph = _traced(plain)
    if graph is None:
        return plain, []
    traced = fx.GraphModule(plain, graph)
    folds = []
    for conv_name, norm_name in _pairs(graph, live):
        conv, norm = (cast(Any, live.get_submodule(name)) for name in (conv_name, norm_name))
        view = copy.deepcopy(conv)
        view.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        view = view.requires_grad_(False).to(memory_format=torch.channels_last)
        traced.set_submodule(conv_name, view)
        own = plain.get_submodule(norm_name)
        rest = nn.Sequential(*(m for n, m in own.named_children() if n in ("drop", "act")))
        traced.set_submodule(norm_name, rest)
        folds.append(_Fold(view, conv, norm))
    return (traced, folds) if folds else (plain, [])
