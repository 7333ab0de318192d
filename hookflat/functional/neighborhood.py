"""The relative L2 neighbourhood of the weights: which tensors it has, how to sample it, how to project on it.

B_xi(w) = {w + nu : ||nu_l||_2 <= xi ||w_l||_2 for every layer l} (Stutz, Hein, Schiele 2021, Eq. 2). A layer is one
parameter tensor of a convolution or a linear layer. Normalisation layers are left out by construction, as are tables
that are looked up by index (of positions), auxiliary heads and parameters with `requires_grad=False` (protocol, 1.5).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hookflat.functional.brackets import check_network, restored
from hookflat.functional.layers import AuxiliaryHead
from hookflat.functional.seeds import groups_of_normals_like, normals_like

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)


def layers(model: nn.Module, *, biases: bool = True) -> dict[str, nn.Parameter]:
    """Name to parameter of the tensors that weight perturbations move; `biases=False` keeps those of 2 or more dims.

    Flatness moves biases too, perturbations during training do not (protocol 1.5 and 4.1; official AWP code).

    A tensor that several layers share is there once. Raises ValueError for layers whose weight is computed from other
    parameters, for weights in half precision, when nothing is left (all parameters frozen), and for what is no network.
    """
    check_network(model)
    weights: dict[str, nn.Parameter] = {}
    auxiliary = _of_auxiliary_heads(model)
    for prefix, module in model.named_modules():
        if isinstance(module, _LAYERS) and module not in auxiliary:
            computed = any(name.endswith(("_orig", "_g")) for name in module._parameters)  # pruned; weight norm
            if computed or parametrize.is_parametrized(module):
                raise ValueError(
                    f"layer {prefix!r} is parametrized or pruned: make its weight a parameter first "
                    "(torch.nn.utils: prune.remove, remove_weight_norm, parametrize.remove_parametrizations)"
                )
            for name, p in module.named_parameters(prefix, recurse=False):
                if p.requires_grad and (biases or p.dim() > 1) and not any(p is other for other in weights.values()):
                    weights[name] = p
    if half := [name for name, p in weights.items() if p.dtype in (torch.bfloat16, torch.float16)]:
        raise ValueError(f"weights in half precision round perturbations away ({half[0]}): use model.float()")
    if not weights:
        raise ValueError(
            "no weights to perturb: no convolution or linear layer has a parameter that requires gradients"
        )
    return weights


def _of_auxiliary_heads(model: nn.Module) -> set[nn.Module]:
    return {m for head in model.modules() if isinstance(head, AuxiliaryHead) for m in head.head.modules()}


def perturbed_by_flatness(model: nn.Module) -> list[nn.Parameter]:
    """The tensors of `layers`; warns where over a tenth of the parameters are matrices that modules hold by themselves.

    Raises ValueError as `layers` does.
    """
    weights = layers(model)
    known, auxiliary = {id(p) for p in weights.values()}, _of_auxiliary_heads(model)
    others = {
        f"{prefix}.{name}".lstrip("."): p
        for prefix, module in model.named_modules()
        if not isinstance(module, nn.Embedding) and module not in auxiliary
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad and p.dim() > 1 and id(p) not in known
    }
    left = sum(p.numel() for p in others.values())
    share = left / (left + sum(p.numel() for p in weights.values()))
    if share > 0.1:
        warnings.warn(
            f"weights that belong to no convolution or linear layer stay as they are: {next(iter(others))}"
            f"{f' and {len(others) - 1} more' * (len(others) > 1)}, {share:.0%} of the parameters",
            stacklevel=3,
        )
    return [*weights.values()]


def scaled_to(
    directions: Sequence[Tensor], weights: Sequence[Tensor], xi: float, *, filters: bool = False
) -> list[Tensor]:
    """Each direction stretched to the norm xi ||w_l||_2; a zero direction or a zero layer stays put.

    `filters`: in convolutions each output filter to xi times its own norm.
    """
    sizes = norms([w.detach() for w in weights], filters=filters)
    return list(torch._foreach_mul([*directions], stretches(norms(directions, filters=filters), sizes, xi)))


def norms(tensors: Sequence[Tensor], *, filters: bool = False) -> list[Tensor]:
    """The norm of each tensor, or of each filter of a convolution's, in a shape to multiply it by."""
    if not filters:
        return list(torch._foreach_norm([*tensors]))
    dims = (tuple(range(1 if t.dim() > 2 else 0, t.dim())) for t in tensors)
    return [torch.linalg.vector_norm(t, dim=dim, keepdim=True) for t, dim in zip(tensors, dims, strict=True)]


def stretches(lengths: Sequence[Tensor], sizes: Sequence[Tensor], xi: float) -> list[Tensor]:
    """By what to multiply what is of these lengths (of `norms`) to reach `xi` times the sizes; zero stays."""
    length, size = (torch.cat([n.flatten() for n in each]) for each in (lengths, sizes))
    factors = torch.where(length > 0, xi * size / length.clamp_min(torch.finfo(length.dtype).tiny), 0)
    each = zip(factors.split([n.numel() for n in lengths]), lengths, strict=True)
    return [factor.view(n.shape).to(n.dtype) for factor, n in each]


def sphere(weights: Sequence[Tensor], xi: float, generator: torch.Generator, *, filters: bool = False) -> list[Tensor]:
    """One perturbation of norm exactly xi ||w_l||_2 and uniform direction for each layer (seeded by a CPU `generator`).

    `filters`: for each filter of a convolution.
    """
    return scaled_to(normals_like([w.detach() for w in weights], generator), weights, xi, filters=filters)


def each_on_sphere(
    weights: Sequence[Tensor], xi: float, generator: torch.Generator, *, filters: bool = False
) -> Iterator[Tensor]:
    """The perturbation that `sphere` draws, some layers at a time as they are asked for: as much as the largest has."""
    left = list(weights)
    for directions in groups_of_normals_like([w.detach() for w in weights], generator):
        here, left = left[: len(directions)], left[len(directions) :]
        yield from scaled_to(directions, here, xi, filters=filters)


@torch.no_grad()
def sharpest(gradients: Sequence[Tensor], rho: float, scales: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The step of SAM, rho g / ||g|| over all tensors at once, or of ASAM, rho T^2 g / ||T g||, with T = `scales`.

    Foret et al. 2021, Eq. 2; Kwon et al. 2021. A zero gradient gives a zero step.
    """
    scales = [torch.ones_like(g) for g in gradients] if scales is None else scales
    stretched = [t * g for t, g in zip(scales, gradients, strict=True)]
    factor = rho / torch.nn.utils.get_total_norm(stretched).clamp_min(1e-12)
    return [factor * t * g for t, g in zip(scales, stretched, strict=True)]


def ball(weights: Sequence[Tensor], xi: float, generator: torch.Generator, *, filters: bool = False) -> list[Tensor]:
    """One perturbation of uniform direction for each layer, its norm uniform in [0, xi ||w_l||_2].

    `filters`: each filter of a convolution is of its own relative norm, scaled by the layer's one draw.
    """
    radii = torch.rand(len(weights), generator=generator)
    on_sphere = sphere(weights, xi, generator, filters=filters)
    return [r * nu for r, nu in zip(radii.tolist(), on_sphere, strict=True)]  # numbers: a GPU waits for a copy


def project(nu: Sequence[Tensor], weights: Sequence[Tensor], xi: float, *, filters: bool = False) -> list[Tensor]:
    """The nearest point of the ball: layers outside are pulled back to norm xi ||w_l||_2, the others unchanged.

    `filters`: the same for each filter of a convolution.
    """
    on_sphere = scaled_to(nu, weights, xi, filters=filters)
    sizes = (norms(each, filters=filters) for each in (nu, on_sphere))
    return [torch.where(b < a, s, n) for n, s, a, b in zip(nu, on_sphere, *sizes, strict=True)]


@contextmanager
def moved(weights: Sequence[Tensor], nu: Iterable[Tensor]) -> Generator[None]:
    """The weights at w + nu inside, at w again on any exit, bit for bit."""
    with restored(weights):
        with torch.no_grad():
            for w, n in zip(weights, nu, strict=True):
                w.add_(n)
        yield
