"""How often adversarial examples of one network fool another: FGSM, I-FGSM and MI-FGSM (Dong et al. 2018, Table 1).

    hookflat run standard --with scales/cifar10-mini --set data.train=10000 --set run.epochs=12 --out runs/transfer/a
    python benchmarks/transfer.py runs/transfer/*

The runs share their data. For every ordered pair, of the test images that both get right: the share that the other one
gets wrong. Steps of eps / 10 from the image, the last iterate; MI-FGSM's momentum is 1, as there.
"""

from __future__ import annotations

import hookflat  # isort: skip  (before torch: it decides how threads wait)

import argparse
import statistics
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor, nn

ATTACKS = {"FGSM": (1, 0.0), "I-FGSM": (10, 0.0), "MI-FGSM": (10, 1.0)}
"""Steps and momentum."""


@torch.no_grad()
def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images (n,) a network gets right."""
    return net(x).argmax(dim=1) == y


def fooled(source: nn.Module, target: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[float]:
    """The share of images that `target` gets wrong under each attack on `source`."""
    shares = []
    for steps, momentum in ATTACKS.values():
        x_adv = hookflat.pgd(
            source, x, y, eps=eps, steps=steps, step_size=eps / steps, start="zero", keep="last", momentum=momentum
        )
        shares.append(1 - right(target, x_adv, y).float().mean().item())
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, two or more")
    parser.add_argument("--examples", type=int, default=1000)
    options = parser.parse_args()
    loaded = {folder: hookflat.load(folder) for folder in options.runs}
    nets = {folder: run.network for folder, run in loaded.items()}
    x, y = loaded[options.runs[0]].data.test[: options.examples]
    known = {folder: right(net, x, y) for folder, net in nets.items()}
    print("clean error:", ", ".join(f"{folder.name} {1 - k.float().mean():.1%}" for folder, k in known.items()))
    print(f"\n| eps x 255 | from, to | {' | '.join(ATTACKS)} |\n|---|---|{'---|' * len(ATTACKS)}")
    for eps in (4, 8, 16):
        rows = []
        for a, b in permutations(nets, 2):
            both = known[a] & known[b]
            rows.append(fooled(nets[a], nets[b], x[both], y[both], eps / 255))
            print(f"| {eps} | {a.name}, {b.name} | {' | '.join(f'{share:.1%}' for share in rows[-1])} |", flush=True)
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        print(f"| {eps} | mean | {' | '.join(f'{mean:.1%}' for mean in means)} |")


if __name__ == "__main__":
    main()
