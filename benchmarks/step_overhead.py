"""What the hooks cost: a training step through the loop against the same step written by hand in plain PyTorch.

    python benchmarks/step_overhead.py [--pairs 15] [--batch 16] [--threads 2]

ResNet-18 at 32x32, PGD-7 adversarial training, SGD. Both sides attack the same view of the network, train by the same
convolutions and take their steps in turn on the same batches, and the ratio is taken pair by pair, so that a drifting
machine does not favour one.
"""

from __future__ import annotations

import hookflat  # noqa: F401  # isort: skip  (before torch: it decides how threads wait)

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hookflat import hookimpl
from hookflat.functional.attack_view import AttackView
from hookflat.functional.attacks import pgd
from hookflat.functional.data import Data, Images
from hookflat.testing import tiny_run
from hookflat.training import loop


@dataclass(eq=False)
class ColourNoise:
    """Random colour images: timing needs no more."""

    train: int = 512

    @hookimpl
    def build_data(self) -> Data:
        """Both splits."""
        x = torch.randint(0, 256, (self.train, 3, 32, 32), dtype=torch.uint8)
        images = Images(x, torch.randint(0, 10, (self.train,)))
        return Data(images, images, 10)


def tables(batch: int, threads: int) -> dict:
    """The recipe of both sides."""
    return {
        "data": {"name": "colour_noise"},
        "model": {"name": "resnet18"},
        "attack": {"name": "pgd", "eps": 8 / 255, "step_size": 0.007, "steps": 7},
        "run": {"batch_size": batch, "threads": threads, "epochs": 100},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    recipe = tables(options.batch, options.threads)
    with tiny_run(recipe, [ColourNoise]) as ours, tiny_run(recipe, [ColourNoise]) as other:
        network = other.network
        view = AttackView(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        x, y = other.data.train.x, other.data.train.y

        def by_hand(step: int) -> None:
            index = torch.arange(options.batch) + options.batch * (step % 16)
            images, labels = x[index].float() / 255, y[index]
            view.refresh()
            x_adv = pgd(view, images, labels, eps=8 / 255, step_size=0.007, steps=7, seed=step)
            loss = F.cross_entropy(other.model(x_adv), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        batches = itertools.chain.from_iterable(ours.batches() for _ in itertools.count())

        def through_the_loop(step: int) -> None:
            loop.step(ours, next(batches))

        ratios = compare(through_the_loop, by_hand, options.pairs)
    low, high = min(ratios), max(ratios)
    print(f"{options.pairs} pairs, batch {options.batch}, {options.threads} thread(s)")
    print(f"loop / by hand: median {statistics.median(ratios):.4f}, range {low:.4f} to {high:.4f}")


def compare(one: Callable[[int], None], two: Callable[[int], None], pairs: int) -> list[float]:
    """Ratios of wall time, one a pair; the order within pairs alternates; two pairs are warm-up."""
    ratios = []
    for i in range(pairs + 2):
        seconds = {}
        for side in (one, two) if i % 2 else (two, one):
            began = time.perf_counter()
            side(i)
            seconds[side] = time.perf_counter() - began
        ratios.append(seconds[one] / seconds[two])
    return ratios[2:]


if __name__ == "__main__":
    main()
