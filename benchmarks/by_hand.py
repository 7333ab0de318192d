"""What a researcher writes without hookflat: attacks, measures and training steps as in the official repositories.

The other side of `peers.py`. Plain PyTorch, nothing of hookflat; each function says whose structure it has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Budget:
    """Of an attack."""

    eps: float
    step_size: float
    steps: int


def pgd(model: nn.Module, x: Tensor, y: Tensor, attack: Budget, clean: Tensor | None = None) -> Tensor:
    """The attack of TRADES's and MART's code (`autograd.grad`, last iterate); with `clean` logits TRADES's KL."""
    x_adv = (x + attack.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(attack.steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x_adv)
            if clean is None:
                loss = F.cross_entropy(logits, y)
            else:
                loss = F.kl_div(F.log_softmax(logits, dim=1), clean.softmax(dim=1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + attack.step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - attack.eps), x + attack.eps).clamp(0, 1)
    return x_adv.detach()


def robust_loss(model: nn.Module, x: Tensor, y: Tensor, attack: Budget, restarts: int) -> Tensor:
    """(n,) the largest cross-entropy of the best iterates of all restarts."""
    worst = torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(restarts):
        x_adv = (x + attack.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for step in range(attack.steps + 1):
            last = step == attack.steps
            x_adv = x_adv.detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                loss = F.cross_entropy(model(x_adv), y, reduction="none")
            worst = torch.maximum(worst, loss.detach())
            if not last:
                (gradient,) = torch.autograd.grad(loss.sum(), x_adv)
                x_adv = x_adv.detach() + attack.step_size * gradient.sign()
                x_adv = torch.min(torch.max(x_adv, x - attack.eps), x + attack.eps).clamp(0, 1)
    return worst


def _is_layer(name: str, p: Tensor) -> bool:
    return p.dim() > 1 or name.endswith(("fc.bias", "conv1.bias"))


def average_flatness(model: nn.Module, x: Tensor, y: Tensor, attack: Budget, *, xi: float, samples: int) -> float:
    """Mean robust loss of `samples` deep copies with noise of relative norm `xi` in every layer."""
    losses = []
    for _ in range(samples):
        noisy = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in noisy.named_parameters():
                if _is_layer(name, p):
                    noise = torch.randn_like(p)
                    p.add_(noise * (xi * p.norm() / noise.norm()))
        losses.append(robust_loss(noisy, x, y, attack, 1).mean().item())
    return sum(losses) / samples


def worst_flatness(
    model: nn.Module, x: Tensor, y: Tensor, attack: Budget, *, xi: float, sweeps: int, batch_size: int
) -> float:
    """Robust loss after joint ascent on a deep copy's weights and on the inputs, projected after every step."""
    moved = copy.deepcopy(model)
    pairs = [(p, q) for (n, p), q in zip(moved.named_parameters(), model.parameters(), strict=True) if _is_layer(n, p)]
    for p in moved.parameters():
        p.requires_grad_(any(p is a for a, _ in pairs))
    x_adv = (x + attack.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(sweeps):
        for i in range(0, len(x), batch_size):
            here = x_adv[i : i + batch_size].clone().requires_grad_()
            F.cross_entropy(moved(here), y[i : i + batch_size]).backward()
            with torch.no_grad():
                for p, q in pairs:
                    gradient = p.grad if p.grad is not None else torch.zeros_like(p)
                    p.add_(gradient * (0.01 * q.norm() / gradient.norm().clamp_min(1e-12)))
                    nu = p - q
                    p.copy_(q + nu * (xi * q.norm() / nu.norm().clamp_min(1e-12)).clamp_max(1))
                    p.grad = None
                assert here.grad is not None
                stepped = here.detach() + attack.step_size * here.grad.sign()
                low, high = x[i : i + batch_size] - attack.eps, x[i : i + batch_size] + attack.eps
                x_adv[i : i + batch_size] = torch.min(torch.max(stepped, low), high).clamp(0, 1)
    with torch.no_grad():
        return F.cross_entropy(moved(x_adv), y).item()


class Training:
    """Steps of the methods on one network: attack in evaluation mode, loss in training mode, SGD with momentum."""

    def __init__(self, model: nn.Module, attack: Budget) -> None:
        self.model, self.attack = model, attack
        self.sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.weights = [p for p in model.parameters() if p.dim() > 1]

    def _craft(self, x: Tensor, y: Tensor, clean: Tensor | None = None) -> Tensor:
        self.model.eval()
        x_adv = pgd(self.model, x, y, self.attack, clean)
        self.model.train()
        return x_adv

    def _update(self, loss: Tensor) -> Tensor:
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        return loss.detach()

    def at(self, x: Tensor, y: Tensor) -> Tensor:
        """Madry et al. 2018."""
        return self._update(F.cross_entropy(self.model(self._craft(x, y)), y))

    def trades_loss(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        """Zhang et al. 2019: the official code's loss, beta 6."""
        logits = self.model(x)
        robust = F.kl_div(F.log_softmax(self.model(x_adv), dim=1), F.softmax(self.model(x), dim=1), reduction="sum")
        return F.cross_entropy(logits, y) + 6 * robust / len(x)

    def trades(self, x: Tensor, y: Tensor) -> Tensor:
        """The official code asks for the clean logits in every step of the attack."""
        self.model.eval()
        with torch.no_grad():
            clean = self.model(x)
        return self._update(self.trades_loss(x, y, self._craft(x, y, clean)))

    def mart(self, x: Tensor, y: Tensor) -> Tensor:
        """Wang et al. 2020: the official code's loss, beta 6."""
        x_adv = self._craft(x, y)
        logits, adversarial = self.model(x), self.model(x_adv)
        p_adv = adversarial.softmax(dim=1)
        two = p_adv.argsort(dim=1)[:, -2:]
        other = torch.where(two[:, -1] == y, two[:, -2], two[:, -1])
        p = logits.softmax(dim=1)
        boosted = F.cross_entropy(adversarial, y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), other)
        kl = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(dim=1)
        doubt = 1.0000001 - p.gather(1, y[:, None]).squeeze(1)
        return self._update(boosted + 6 * (kl * doubt).mean())

    def _perturbed(self, loss_of: Callable[[nn.Module], Tensor], xi: float) -> list[Tensor]:
        """AWP's proxy: a copy of the network, one ascent step, the difference scaled to the weights' norms."""
        proxy = copy.deepcopy(self.model)
        ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
        (-loss_of(proxy)).backward()
        ascent.step()
        changed = [p for p in proxy.parameters() if p.dim() > 1]
        differences = [q.detach() - p.detach() for p, q in zip(self.weights, changed, strict=True)]
        return [xi * p.norm() / (d.norm() + 1e-20) * d for p, d in zip(self.weights, differences, strict=True)]

    def _moved(self, nu: list[Tensor], sign: int) -> None:
        with torch.no_grad():
            for p, n in zip(self.weights, nu, strict=True):
                p.add_(n, alpha=sign)

    def at_awp(self, x: Tensor, y: Tensor) -> Tensor:
        """Wu et al. 2020, the AT version."""
        x_adv = self._craft(x, y)
        nu = self._perturbed(lambda proxy: F.cross_entropy(proxy(x_adv), y), 0.01)
        self._moved(nu, 1)
        loss = self._update(F.cross_entropy(self.model(x_adv), y))
        self._moved(nu, -1)
        return loss

    def random_weights(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient at a random point of the relative sphere, after a pass at the weights."""
        x_adv = self._craft(x, y)
        with torch.no_grad():
            self.model(x_adv)
        nu = []
        for p in self.weights:
            noise = torch.randn_like(p)
            nu.append(noise * (0.5 * p.detach().norm() / noise.norm()))
        self._moved(nu, 1)
        loss = F.cross_entropy(self.model(x_adv), y)
        self.sgd.zero_grad()
        loss.backward()
        self._moved(nu, -1)
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 0.05)
        self.sgd.step()
        return loss.detach()

    def entropy_sgd(self, x: Tensor, y: Tensor) -> Tensor:
        """One Langevin step: the gradient, a pull to the outer weights, and noise on every tensor."""
        if not hasattr(self, "anchor"):
            self.anchor = [p.detach().clone() for p in self.model.parameters()]
            self.mean = [a.clone() for a in self.anchor]
        loss = F.cross_entropy(self.model(self._craft(x, y)), y)
        self.sgd.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p, a in zip(self.model.parameters(), self.anchor, strict=True):
                assert p.grad is not None
                p.grad.add_(p - a, alpha=1e-4).add_(torch.randn_like(p), alpha=4e-4)
            self.sgd.step()
            for p, m in zip(self.model.parameters(), self.mean, strict=True):
                m.lerp_(p, 0.25)
        return loss.detach()

    def label_noise(self, x: Tensor, y: Tensor) -> Tensor:
        """Two fifths of the labels redrawn, in the loss alone."""
        x_adv = self._craft(x, y)
        drawn = torch.rand(len(y), device=y.device) < 0.4
        noisy = torch.where(drawn, torch.randint_like(y, 10), y)
        return self._update(F.cross_entropy(self.model(x_adv), noisy))

    def autoaugment(self, x: Tensor, y: Tensor) -> Tensor:
        """torchvision's policy, image by image as a data loader does it, then AT."""
        from torchvision.transforms import v2

        policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        levels = (255 * x).round().to(torch.uint8)
        x = torch.stack([policy(image) for image in levels]).float() / 255
        return self.at(x, y)
