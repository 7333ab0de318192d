"""What the parts of an attack gain: the view over the plain network, Winograd over torch's convolutions, fewer passes.

    python benchmarks/attack_view.py [--threads 1]

The best of five turns of each side, forward and back to the images, or to the weights where it says so; ratios above 1:
how many times as fast.
"""

from __future__ import annotations

import hookflat  # isort: skip  (before torch: it decides how threads wait)

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hookflat import Attack, AttackView, Threat, small_image_resnet
from hookflat.functional import winograd
from hookflat.functional.winograd import WinogradConv2d, WinogradConvolutions
from hookflat.functional.work import Work


def backwards(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A pass forward and back to the input."""
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(module(x).square().sum(), x)


def by_weights(conv: nn.Conv2d, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    """torch's gradient by a convolution's weights."""
    ones, zeros = [1, 1], [0, 0]
    what = (gradient, x, conv.weight, None, ones, ones, ones, False, zeros, 1, [False, True, False])
    return lambda: torch.ops.aten.convolution_backward(*what)


def training(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """A training pass, forward and back to the weights."""
    return lambda: torch.autograd.grad(net(x).square().mean(), list(net.parameters()))


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """Best time of `slow` over that of `fast`, in turns."""
    best = {slow: float("inf"), fast: float("inf")}
    for turn in range(6):
        for side in (slow, fast):
            began = time.perf_counter()
            side()
            best[side] = min(best[side], time.perf_counter() - began) if turn else best[side]
    return best[slow] / best[fast]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    for width, batch, size in ((64, 32, 32), (32, 64, 16), (16, 32, 32)):
        net, x = (
            small_image_resnet(width, 2, 3, 10, "batch", "relu").eval().requires_grad_(False),
            torch.rand(batch, 3, size, size),
        )
        gain = ratio(backwards(net, x), backwards(AttackView(net), x))
        print(f"plain ResNet-18 over its view, width {width}, {batch} images of {size}x{size}: {gain:.2f}")
    for channels, size in ((256, 8), (512, 4), (320, 8), (640, 8)):
        conv = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        for batch in (16, 64):
            x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
            direct = backwards(conv.to(memory_format=torch.channels_last), x)
            gain = ratio(direct, backwards(WinogradConv2d(conv), x))
            print(f"torch's convolution over Winograd's, {channels} channels, {batch} of {size}x{size}: {gain:.2f}")
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4), (640, 8)):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        for batch in (32, 128):
            shape, what = (batch, channels, size, size), f"{channels} channels, {batch} of {size}x{size}"
            x, g = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in "xg")
            gain = ratio(by_weights(conv, x, g), lambda x=x, g=g: winograd._by_weights(x, g))
            print(f"torch's gradient by weights over Winograd's, {what}: {gain:.2f}")
    trained = small_image_resnet(64, 2, 3, 10, "batch", "relu").to(memory_format=torch.channels_last)
    for batch in (16, 64, 128):
        x = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        gain = ratio(training(trained, x), training(WinogradConvolutions(trained), x))
        print(f"a training pass of a ResNet-18 with torch's convolutions over Winograd's, batch {batch}: {gain:.2f}")
    net = small_image_resnet(16, 1, 3, 10, "batch", "relu")
    for _ in range(5):
        net(torch.rand(64, 3, 16, 16))
    x = torch.rand(300, 3, 16, 16)
    y = net.eval()(x).argmax(dim=1)
    attack = Attack(Threat(0.01), step_size=0.0025, steps=10, restarts=4)
    whole, alone = Work(), Work()
    hookflat.robust_loss(net, (x, y), work=whole, attack=attack)
    error = hookflat.robust_error(net, (x, y), work=alone, attack=attack).error
    print(f"passes for RErr = {error:.1%}: {alone.tally.passes} alone, {whole.tally.passes} with RLoss")
    exact = torch.float64
    deep = small_image_resnet(64, 2, 3, 10, "batch", "relu")
    for _ in range(3):
        deep(torch.rand(64, 3, 32, 32))
    x = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        plain, view = deep.eval()(x), AttackView(deep)(x)
        truth = deep.to(exact)(x.to(exact))
    for name, logits in (("network", plain), ("view", view)):
        error = ((logits - truth).abs().max() / truth.abs().max()).item()
        print(f"largest error of the {name}'s logits, relative to the largest logit: {error:.1e}")


if __name__ == "__main__":
    main()
