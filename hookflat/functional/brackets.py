"""Brackets around a network: whatever one changes it puts back, bit for bit, also when the body raises."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hookflat.functional.layers import Normalized


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Generator[None]:
    """Copy the values of `tensors` (parameters or buffers) and write them back on any exit."""
    tensors = list(tensors)
    saved = [torch.empty_like(t) for t in tensors]
    _copy(saved, tensors)
    try:
        yield
    finally:
        _copy(tensors, saved)


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    for dtype in {t.dtype for t in into}:  # a GPU takes lists of one type at once
        these = [i for i, t in enumerate(into) if t.dtype == dtype]
        torch._foreach_copy_([into[i] for i in these], [values[i] for i in these])


@contextmanager
def in_mode(model: nn.Module, train: bool) -> Generator[None]:
    """Training or evaluation mode inside; every module's mode as found outside."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.train(train)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def statistics_kept(modules: Iterable[nn.Module]) -> Generator[None]:
    """Batch norm among `modules` normalises by the batch as in training inside, but its running statistics stay.

    Unlike `restored`, this may stand between a forward and its backward pass.
    """
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)]
    momenta = [m.momentum for m in norms]
    counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
    try:
        for norm in norms:
            norm.momentum = 0.0
        with restored(counters):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def check_network(model: object) -> None:
    """Raises ValueError for what is no module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model should be a torch.nn.Module, not {type(model).__name__}: put a function into one")


@contextmanager
def frozen(model: nn.Module, *, train: bool = False) -> Generator[None]:
    """Evaluation mode (or training mode) and no weight gradients inside; modes, flags and buffers as found outside.

    Raises ValueError for what is no network, and inside `torch.inference_mode()`, which knows no gradients.
    """
    check_network(model)
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode() knows no gradients, which attacks need: call outside it")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        with in_mode(model, train), restored(model.buffers() if train else _moving_buffers(model)):
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _moving_buffers(model: nn.Module) -> list[Tensor]:
    """Those that may change in evaluation mode, too: observers' and counters', not batch norm's."""
    still = nn.modules.batchnorm._NormBase, Normalized
    modules = (m for m in model.modules() if m._buffers and not isinstance(m, still))
    return [b for m in modules for b in m._buffers.values() if b is not None]


@contextmanager
def differentiable(weights: Iterable[Tensor]) -> Generator[None]:
    """Weights of a frozen network ask for gradients inside; frozen again on any exit."""
    weights = list(weights)
    try:
        for w in weights:
            w.requires_grad_()
        yield
    finally:
        for w in weights:
            w.requires_grad_(False)


@contextmanager
def twice_differentiable() -> Generator[None]:
    """Attention inside is computed so that gradients of gradients exist: its fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def full_float32() -> Generator[None]:
    """Convolutions and matrix products in float32, not in the TF32 that GPUs use for it; as found outside.

    Nor in what `torch.autocast` around it says.
    """
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # ty: ignore[missing-attribute]
    before = [b.fp32_precision for b in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


@contextmanager
def measuring(model: nn.Module) -> Generator[None]:
    """`frozen` in `full_float32`: around all that a measure of `model` computes, whoever asks for it."""
    with full_float32(), frozen(model):
        yield


def draws_undone() -> AbstractContextManager[None]:
    """torch's generators, of CPU and this process's GPU, are outside as they were."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


@contextmanager
def global_state_restored() -> Generator[None]:
    """The generators of random, numpy and torch, and how many threads torch has, are outside as they were."""
    states, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    try:
        with draws_undone():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads(threads)
