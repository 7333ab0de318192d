"""The library's functions with networks and loaders that raise at the n-th call, for every n: all is left as found."""

import torch
from torch import nn

import hookflat
from hookflat.functional.layers import Normalized
from hookflat.testing import Found, interrupted_after

ATTACK = {"steps": 1, "restarts": 1, "eps": 0.1, "step_size": 0.05}
FUNCTIONS = {
    "pgd": lambda net, loader: hookflat.pgd(net, *_pair(loader), **ATTACK),
    "pgd on batch statistics": lambda net, loader: hookflat.pgd(net, *_pair(loader), mode="train", **ATTACK),
    "pgd_tau": lambda net, loader: hookflat.pgd_tau(net, *_pair(loader), tau=1, **ATTACK),
    "robust_loss": lambda net, loader: hookflat.robust_loss(net, loader, **ATTACK),
    "robust_error": lambda net, loader: hookflat.robust_error(net, loader, **ATTACK),
    "autoattack": lambda net, loader: hookflat.autoattack(
        net, loader, eps=0.1, version="custom", attacks=["apgd-ce"], batch_size=4
    ),
    "average_flatness": lambda net, loader: hookflat.average_flatness(
        net, loader, samples=2, reference_restarts=1, **ATTACK
    ),
    "worst_flatness": lambda net, loader: hookflat.worst_flatness(
        net, loader, attempts=2, sweeps=2, batch_size=4, **ATTACK
    ),
    "clean worst_flatness": lambda net, loader: hookflat.worst_flatness(
        net, loader, attempts=1, sweeps=2, batch_size=4, robust=False, **ATTACK
    ),
    "hessian_eigenvalues": lambda net, loader: hookflat.hessian_eigenvalues(
        net, loader, k=1, tolerance=0.5, remaximise=True, **ATTACK
    ),
    "hessian_trace": lambda net, loader: hookflat.hessian_trace(net, loader, samples=2, **ATTACK),
    "sharpness": lambda net, loader: hookflat.sharpness(net, loader, **ATTACK),
    "relative_flatness": lambda net, loader: hookflat.relative_flatness(net, loader, **ATTACK),
    "landscape": lambda net, loader: hookflat.landscape(
        net, loader, kind="adversarial", directions=1, points=3, **ATTACK
    ),
    "landscape_2d": lambda net, loader: hookflat.landscape_2d(net, loader, points=2, **ATTACK),
    "apgd": lambda net, loader: hookflat.apgd(net, *_pair(loader), steps=1, eps=0.1),
    "average_sharpness": lambda net, loader: hookflat.average_sharpness(net, loader, samples=2, **ATTACK),
    "worst_sharpness": lambda net, loader: hookflat.worst_sharpness(net, loader, iterations=2, batch_size=4, **ATTACK),
    "flatness_along_attack": lambda net, loader: hookflat.flatness_along_attack(net, loader, samples=2, **ATTACK),
    "hessian_density": lambda net, loader: hookflat.hessian_density(net, loader, probes=1, lanczos_steps=2, **ATTACK),
    "margins": lambda net, loader: hookflat.margins(net, loader, **ATTACK),
    "input_gradients": lambda net, loader: hookflat.input_gradients(net, loader, **ATTACK),
    "local_lipschitz": lambda net, loader: hookflat.local_lipschitz(net, loader, eps=0.1, step_size=0.05, steps=1),
    "boundary_thickness": lambda net, loader: hookflat.boundary_thickness(net, loader, steps=1, points=3),
    "trust": lambda net, loader: hookflat.trust(net, loader, queries=2, **ATTACK),
    "recalibrated": lambda net, loader: hookflat.recalibrated(net, _images(), batch_size=4),
}
MOST = 60
"""Calls that are tried one by one; from there on, every 17th."""


class BadLoaderError(Exception):
    """Raised by a loader."""


class Raising:
    """Two batches of four, over and over; the `after`-th batch after the first is not given."""

    def __init__(self, after=10**9):
        self.left = after

    def __iter__(self):
        x, y = _data()
        for batch in zip(x.split(4), y.split(4), strict=True):
            self.left -= 1
            if self.left < 0:
                raise BadLoaderError
            yield batch


def network(seed=0):
    """Small, with every kind of state: batch norm in training mode, a frozen layer, gradients."""
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Identity(), nn.Flatten(), nn.Linear(32, 3)
    )
    net = Normalized(body, torch.tensor([0.4]), torch.tensor([0.3]))
    body[5].bias.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    body[1].train()
    body[3].eval()
    return net


def _data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 1, 4, 4, generator=generator), torch.arange(8) % 3


def _pair(loader):
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def _images():
    x, y = _data()
    return hookflat.Images((255 * x).to(torch.uint8), y)


def failure(name, passes=10**9, batches=10**9):
    """What a function leaves behind that raises after so many passes or batches, None where nothing; and whether it
    raised.
    """
    net = network()
    before, gradients = Found.of(net), [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    generators, raised = (torch.get_rng_state(), torch.is_grad_enabled()), True
    try:
        with interrupted_after(passes):
            FUNCTIONS[name](net, Raising(batches))
            raised = False
    except BadLoaderError:
        pass
    try:
        before.assert_unchanged(net)
    except AssertionError as error:
        return f"{name}, {passes} passes, {batches} batches: {error}", raised
    now = [p.grad for p in net.parameters()]
    same = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(gradients, now, strict=True))
    if not same:
        return f"{name}, {passes} passes, {batches} batches: gradients changed", raised
    if not torch.equal(generators[0], torch.get_rng_state()) or generators[1] != torch.is_grad_enabled():
        return f"{name}, {passes} passes, {batches} batches: torch's generator or gradient mode changed", raised
    return None, raised


def tried(name, calls):
    """(whether it raised, what is wrong) for every number of passes and of batches, until nothing raises any more."""
    for of in ("passes", "batches"):
        for n in calls:
            told, raised = failure(name, **{of: n})
            yield raised, told
            if not raised:
                break


def test_library(tally):
    calls = [*range(MOST), *range(MOST, 10_000, 17)]
    results = [result for name in FUNCTIONS for result in tried(name, calls)]
    what = f"{len(FUNCTIONS)} functions of the library with networks and loaders that raise"
    tally(what, len(results), [told for _, told in results if told])
