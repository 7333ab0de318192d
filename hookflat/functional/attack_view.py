"""The attack view: the same network, made cheap to attack.

Evaluation mode, parameters frozen, batch norm folded into the convolution before it, images in the memory layout that
is fast where it runs, and on CPUs wide 3x3 convolutions by Winograd's algorithm. It shares the tensors of the network
it shows, except for the folded convolutions and the transforms, which `refresh` recomputes.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hookflat.functional import cuda_graphs
from hookflat.functional.brackets import full_float32
from hookflat.functional.choices import Precision, check_choice
from hookflat.functional.copying import NoCopyError, identity, shared_copy
from hookflat.functional.layers import Autocast, AuxiliaryHead, RecenteredBatchNorm2d, device_of
from hookflat.functional.winograd import WinogradConv2d, pays


def _foldable() -> tuple[type, ...]:
    timms = sys.modules.get("timm.layers.norm_act")  # who has a layer of it has imported it; it takes two seconds
    return nn.BatchNorm2d, RecenteredBatchNorm2d, *((timms.BatchNormAct2d,) if timms else ())


class AttackView(nn.Module):
    """A network that computes what `model` computes in evaluation mode, up to rounding, at a lower cost.

    Call `refresh()` after the weights or the statistics of `model` changed in place. Where the network cannot be
    traced, or where the folded one disagrees on its first batch, nothing is folded. `precision`: of convolutions and
    matrix products; "auto" is bf16 where `bf16_pays`. `compile` hands the view to `torch.compile`; where that fails, it
    warns and runs as it is.
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "fp32", compile: bool = False) -> None:
        super().__init__()
        plain = shared_copy(model)
        self._device = device_of(model)
        self._precision = _decided(precision, self._device)
        self._layout = _layout(self._precision, self._device)
        fast, self._folds = _fold(plain, model, self._layout)
        if not compile and (wide := [name for name, module in fast.named_modules() if pays(module)]):
            fast = shared_copy(model) if fast is plain else fast
            for name in wide:
                fast.set_submodule(name, WinogradConv2d(cast(nn.Conv2d, fast.get_submodule(name))))
        self._plain = plain if fast is not plain else None
        self._compile = compile
        self._graphs = cuda_graphs.Graphs()
        self._forgotten = False
        self._use(fast)
        self.refresh()

    def _use(self, net: nn.Module) -> None:
        self.view = self._wrapped(net)
        self._run = torch.compile(self.view) if self._compile else self.view
        super().train(False)
        self._parts = [*self.modules()]  # to walk through them takes longer than to launch a pass
        self._capturable = not any(isinstance(m, AuxiliaryHead) or cuda_graphs.recomputes(m) for m in self._parts)

    def _wrapped(self, net: nn.Module) -> nn.Module:
        if self._precision == "fp16":
            return Autocast(net, torch.float16, scaled=True)
        return Autocast(net) if self._precision == "bf16" else net

    def train(self, mode: bool = True) -> AttackView:
        """Always in evaluation mode, as it was made."""
        return self

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the folded convolutions from the current weights and statistics."""
        self._hold()
        _refresh(self._folds)
        self._forget_transforms()

    def forget(self) -> None:
        """Let go of what is made anew when it is needed: on CPUs folded weights and Winograd's transforms of weights.

        Graphs of a GPU keep the memory that they were captured with until `release`.
        """
        if self._forgotten:
            return
        self._forget_transforms()
        if self._device.type == "cpu" and not self._compile:
            self._forgotten = True
            for fold in self._folds:
                fold.view.weight.untyped_storage().resize_(0)

    def release(self) -> None:
        """Let go of its graphs on a GPU, which keep the activations of their passes; they are made anew when asked."""
        self._graphs.release()

    def _forget_transforms(self) -> None:
        for module in self._parts:
            if isinstance(module, WinogradConv2d):
                module.refresh()

    def _hold(self) -> None:
        """Memory for folded weights."""
        if self._forgotten:
            self._forgotten = False
            for weight in (fold.view.weight for fold in self._folds):
                weight.untyped_storage().resize_(weight.numel() * weight.element_size())

    def once(self) -> nn.Module:
        """The same for one pass, forward and back to the images or forward alone, replayed on GPUs (`cuda_graphs`)."""
        if self._compile or not self._capturable or not cuda_graphs.possible(self._device) or _hooked(self._parts):
            return self
        return cuda_graphs.Once(self, self._graphs)

    def places(self, weight: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Where a parameter of the network is in the view: each tensor, and the factor folded into it, if any."""
        folded = [place for fold in self._folds for place in fold.places(weight)]
        own = {id(tensor) for fold in self._folds for tensor in fold.view.parameters()}
        rest = (p for p in self.view.parameters() if id(p) not in own)
        return folded + [(p, None) for p in rest if p.data_ptr() == weight.data_ptr() and p.shape == weight.shape]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        x = x.contiguous(memory_format=self._layout) if x.dim() == 4 else x
        if self._forgotten:
            self._hold()
            _weigh(self._folds)
        if self._plain is not None:
            self._check(x.detach())
        if self._compile and self._run is not self.view:
            return self._compiled(x)
        return self.view(x)

    def _compiled(self, x: Tensor) -> Tensor:
        try:
            return self._run(x)
        except Exception as error:  # no compiler, or a network that it cannot take
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"torch.compile failed, the attacked network runs uncompiled: {reason}", stacklevel=2)
            self._run = self.view
            return self.view(x)

    @torch.no_grad()
    def _check(self, x: Tensor) -> None:
        """Once: the folded network must agree with the plain one on the first batch it sees.

        In full float32: how deep networks round in TF32 would decide it otherwise.
        """
        plain, self._plain = self._plain, None
        assert plain is not None
        with full_float32():
            expected, got = self._wrapped(plain).eval()(x), self.view(x)
        tolerance = 0.1 if self._precision in ("bf16", "fp16") else 1e-3
        if (got - expected).abs().max() > tolerance * (1 + expected.abs().max()):
            self._folds = []
            self._use(plain)


def once(model: nn.Module) -> nn.Module:
    """What to ask for one pass, with a gradient at the images or without: a view's `once`, or the network itself."""
    return model.once() if isinstance(model, AttackView) else model


_views: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Hashable, AttackView]]] = WeakKeyDictionary()


def attack_view(model: nn.Module, precision: Precision = "fp32") -> nn.Module:
    """The attack view of a network, fresh; the network itself where it is a view, has forward hooks, or has no copy.

    A view is made once for a network and kept as long as it lives; another one is made where modules, their settings,
    or the memory of the weights were exchanged since; not where a class attribute or a global variable was that the
    network looks at. For networks in evaluation mode or inside `frozen`. Raises ValueError for other precisions, and
    inside `torch.inference_mode()`.
    """
    if isinstance(model, AttackView) or hooked(model):
        return model
    if torch.is_inference_mode_enabled():
        raise ValueError("a view made in torch.inference_mode() has no gradients later: call outside it")
    check_choice("precision", precision, Precision)
    device = device_of(model)
    precision = _decided(precision, device)
    kind = precision, _layout(precision, device)
    now, views = identity(model), _views.setdefault(model, {})
    then, view = views.get(kind, (None, None))
    if view is None or then != now:
        try:
            view = AttackView(model, precision=precision)
        except NoCopyError:  # it holds a lock, say
            return model
        views[kind] = now, view
    else:
        view.refresh()
    return view


def views_of(model: nn.Module) -> list[AttackView]:
    """Those that `attack_view` keeps of a network."""
    return [view for _, view in _views.get(model, {}).values()]


def _decided(precision: Precision, device: torch.device) -> Precision:
    """The same, "auto" decided for this device."""
    if precision != "auto":
        return precision
    return "bf16" if bf16_pays(device) else "fp32"


def _layout(precision: Precision, device: torch.device) -> torch.memory_format:
    """Of images: channels last, but where a GPU computes in full float32, whose kernels are slower on that."""
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # ty: ignore[missing-attribute]
    full = device.type == "cuda" and precision == "fp32" and not tf32
    return torch.contiguous_format if full else torch.channels_last


def bf16_pays(device: torch.device) -> bool:
    """Whether convolutions are at least 1.3 times as fast in bfloat16 as in float32 or TF32, whichever is on."""
    return _bf16_pays(device, torch.backends.cudnn.conv.fp32_precision)  # ty: ignore[missing-attribute]


@cache
def _bf16_pays(device: torch.device, precision: str) -> bool:
    """Tried once in each `precision` of float32."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    weight = torch.ones(64, 64, 3, 3, device=device)  # nothing is drawn: trials leave no trace in generators
    x = torch.ones(32, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    seconds = {False: float("inf"), True: float("inf")}
    passes = 20 if device.type == "cuda" else 1  # of which one is launched in the time of one
    for bf16 in (False, True) * 4:
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16), torch.no_grad():
            for _ in range(passes):
                F.conv2d(x, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[bf16] = min(seconds[bf16], time.perf_counter() - began)
    return seconds[False] > 1.3 * seconds[True]


def hooked(model: nn.Module) -> bool:
    """Whether hooks of its user see what goes through: a copy's would be others'."""
    return _hooked(model.modules())


def _hooked(modules: Iterable[nn.Module]) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


@dataclass
class _Fold:
    """One convolution of the view with the batch norm behind it, both read from the live network.

    `factor` (C,): by which the batch norm multiplied each channel at the last refresh.
    """

    view: nn.Conv2d
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    factor: Tensor = field(init=False)

    def places(self, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Where a parameter of the network is in the folded convolution, with its factor."""
        if weight is self.conv.weight:
            return [(self.view.weight, self.factor.view(-1, 1, 1, 1))]
        if weight is self.conv.bias and self.view.bias is not None:
            return [(self.view.bias, self.factor)]
        return []


def _refresh(folds: Sequence[_Fold]) -> None:
    """All folded convolutions from the network's, by lists: a GPU waits for what Python asks for one by one."""
    if not folds:
        return
    norms = [fold.norm for fold in folds]
    factors = torch._foreach_add([cast(Tensor, norm.running_var) for norm in norms], [norm.eps for norm in norms])
    torch._foreach_rsqrt_(factors)
    if affine := [(factor, norm) for factor, norm in zip(factors, norms, strict=True) if norm.weight is not None]:
        centres = [float(isinstance(norm, RecenteredBatchNorm2d)) for _, norm in affine]  # their scale is 1 + weight
        scales = torch._foreach_add([norm.weight for _, norm in affine], centres)
        torch._foreach_mul_([factor for factor, _ in affine], scales)
    shifts = torch._foreach_neg([cast(Tensor, norm.running_mean) for norm in norms])
    where_there(torch._foreach_add_, shifts, [fold.conv.bias for fold in folds])
    torch._foreach_mul_(shifts, factors)
    where_there(torch._foreach_add_, shifts, [norm.bias for norm in norms])
    torch._foreach_copy_([cast(Tensor, fold.view.bias) for fold in folds], shifts)
    for fold, factor in zip(folds, factors, strict=True):
        fold.factor = factor
    _weigh(folds)


@torch.no_grad()
def _weigh(folds: Sequence[_Fold]) -> None:
    """Folded weights, with the factors of the last refresh."""
    weights = [fold.view.weight for fold in folds]
    torch._foreach_copy_(weights, [fold.conv.weight for fold in folds])
    torch._foreach_mul_(weights, [fold.factor.view(-1, 1, 1, 1) for fold in folds])


def where_there(operation: Callable[..., Any], into: Sequence[Tensor], others: Sequence[Tensor | None]) -> None:
    """An operation on lists in place, on those that have another."""
    if pairs := [(a, b) for a, b in zip(into, others, strict=True) if b is not None]:
        operation(*map(list, zip(*pairs, strict=True)))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_foldable(), AuxiliaryHead)) or super().is_leaf_module(m, module_qualified_name)


def conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution of `model` with the batch norm that directly follows it, where each is used once.

    None where the network cannot be traced.
    """
    plain = shared_copy(model)
    graph = _traced(plain)
    pairs = _pairs(graph, plain) if graph is not None else []
    return [(cast(nn.Conv2d, model.get_submodule(c)), cast(nn.BatchNorm2d, model.get_submodule(n))) for c, n in pairs]


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
    pairs = []
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
                pairs.append(names)
    return pairs


def _fold(plain: nn.Module, live: nn.Module, layout: torch.memory_format) -> tuple[nn.Module, list[_Fold]]:
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
        view = view.requires_grad_(False).to(memory_format=layout)
        traced.set_submodule(conv_name, view)
        own = plain.get_submodule(norm_name)
        rest = nn.Sequential(*(m for n, m in own.named_children() if n in ("drop", "act")))
        traced.set_submodule(norm_name, rest)
        folds.append(_Fold(view, conv, norm))
    return (traced, folds) if folds else (plain, [])
