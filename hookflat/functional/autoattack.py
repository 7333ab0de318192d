"""AutoAttack (Croce and Hein 2020) through the package `pyautoattack`: resumable, over many processes, without a trace.

The robust accuracy is that of calling the package on the whole set with the same seed and batch size. The attacks run
one after another on the examples that are still robust, in batches of `batch_size`; the package seeds itself anew for
every batch, so batches can be spread over processes and kept as they finish.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hookflat.functional.attack_view import attack_view, once
from hookflat.functional.brackets import measuring
from hookflat.functional.choices import Norm, check_choice
from hookflat.functional.examples import Examples, Loader, Set, check_order, classes_of, set_of
from hookflat.functional.layers import device_of
from hookflat.functional.losses import misclassified
from hookflat.functional.robustness import RobustLoss
from hookflat.functional.shown import Shown
from hookflat.functional.work import Values, Work

Version = Literal["standard", "plus", "rand", "custom"]


@dataclass(frozen=True, eq=False, repr=False)
class AutoAttackResult(Shown):
    """`error`: RErr in [0, 1], wrong clean or under any attack; `clean_error`; `broken`: each attack's share of it.

    `broken_by` (N,) int64, in the order of the set: -1 robust, 0 wrong without an attack, i by the i-th of `broken`.
    `log`: what the package said (of this process's batches).
    """

    error: float
    clean_error: float
    broken: dict[str, float]
    broken_by: Tensor
    log: str = field(repr=False)


def autoattack(
    model: nn.Module,
    loader: Loader,
    *,
    eps: float = 8 / 255,
    norm: Norm = "Linf",
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    clean: RobustLoss | None = None,
    work: Work | None = None,
) -> AutoAttackResult:
    """RErr under AutoAttack.

    `version`: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus", "rand", or "custom" with `attacks` of apgd-ce,
    apgd-dlr, fab, square, apgd-t, fab-t (one restart each). With fewer than ten classes the targeted attacks try all
    the others; with two or three, where the targeted DLR loss is not defined, FAB runs untargeted and APGD-T is left
    out. The result depends on `batch_size`, as the package's does. `clean`: as in `robust_loss`.

    Raises ValueError for a version or attack that does not exist.
    """
    if (version == "custom") != (attacks is not None):
        raise ValueError('name `attacks` with version="custom", and only there')
    check_choice("norm", norm, Norm)
    if clean is not None:
        check_order(loader)
    work = work or Work()
    log: list[str] = []
    with measuring(model):
        device = device_of(model)
        x, y, spread = _whole(loader, model, device)
        if clean is None:
            wrong = misclassified(torch.cat([_predicted(model, part) for part in x.split(batch_size)]), y)
        else:
            wrong = clean.per_example.clean_wrong.to(device)
        broken_by = torch.where(wrong, 0, -1)
        package = _Package(model, x.dtype, eps, norm, version, attacks, classes_of(model, x), seed, work)
        for number, attack in enumerate(package.attacks, start=1):
            left = (broken_by < 0).nonzero().flatten()
            flags = torch.zeros(len(y), device=device)
            log.append(
                f"--- {attack}: {len(left)} of {len(y)} images are right so far; percentages are of a batch of them\n"
            )
            for i, batch in enumerate(left.split(batch_size)):
                if len(batch) and i % spread.processes == spread.rank:
                    result = work.once(f"{attack}-{i}", lambda b=batch, a=attack: package.run(a, x[b], y[b]))
                    flags[batch] = result["broken"].to(device)
                    log.append(bytes(result["log"].tolist()).decode())
            broken_by = torch.where((broken_by < 0) & (spread.sum(flags) > 0), number, broken_by)
            log.append(
                f"--- robust accuracy of all {len(y)} images after {attack}: {100 * _share(broken_by < 0):.2f}%\n"
            )
    shares = {attack: _share(broken_by == number) for number, attack in enumerate(package.attacks, start=1)}
    return AutoAttackResult(_share(broken_by >= 0), _share(wrong), shares, broken_by.cpu(), "".join(log))


def autoattacks(version: Version, classes: int, attacks: Sequence[str] | None = None) -> list[str]:
    """The attacks of a version that are possible with so many classes, in their order."""
    check_choice("version", version, Version)
    names = {
        "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
        "rand": ["apgd-ce", "apgd-dlr"],
        "custom": list(attacks or ()),
    }[version]
    if classes < 4:  # the targeted DLR loss needs the fourth largest logit
        names = ["fab" if a == "fab-t" else a for a in names if a != "apgd-t"]
    if classes < 3:  # the DLR loss the third
        names = [a for a in names if a != "apgd-dlr"]
    return list(dict.fromkeys(names))


class _Package:
    """One batch and one attack at a time."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        eps: float,
        norm: Norm,
        version: Version,
        attacks: Sequence[str] | None,
        classes: int,
        seed: int,
        work: Work,
    ) -> None:
        self.attacks = autoattacks(version, classes, attacks)
        known = autoattacks("plus", 10)
        if strange := [a for a in self.attacks if a not in known]:
            raise ValueError(f"AutoAttack has no attack {strange[0]!r}: it has {', '.join(known)}")
        if not self.attacks:
            raise ValueError(f"no attack of {version!r} is possible with {classes} classes")
        self.network = _Counted(model, dtype, work)
        self.view = _Counted(attack_view(model), dtype, work)
        self.version, self.classes = version, classes
        self.options: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed}

    def run(self, attack: str, x: Tensor, y: Tensor) -> Values:
        """Which of the examples, all classified correctly, the attack breaks: (n,) float, 0 or 1; and the log.

        The attack view is searched, and the network itself confirms what was found; where it does not, it is searched.
        """
        claimed, x_adv, log = self._search(self.view, attack, x, y)
        broken = claimed.clone()
        if claimed.any():
            broken[claimed] = misclassified(_predicted(self.network, x_adv[claimed]), y[claimed])
        if self.view.model is not self.network.model and len(rest := (claimed & ~broken).nonzero().flatten()):
            broken[rest], _, more = self._search(self.network, attack, x[rest], y[rest])
            log += more
        return {"broken": broken.float(), "log": torch.tensor(list(log.encode()), dtype=torch.uint8)}

    def _search(self, model: _Counted, attack: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, str]:
        """Which examples the package calls broken, (n,) bool; its adversarial examples; what it said."""
        from pyautoattack import AutoAttack

        listed: dict[str, Any] = {"attacks": [attack]} if self.version == "custom" else {}
        package = AutoAttack(model, version=self.version, device=x.device, **self.options, **listed)
        package.attacks_to_run = [attack]
        model.replayed = attack != "fab"  # which goes back through a pass for every class
        for apgd in (package.apgd, package.apgd_targeted):
            if apgd.eot_iter == 1 and not apgd.use_largereps:  # one pass decides, at the radius that counts
                apgd.attack_single_run = partial(model.climbed, apgd.attack_single_run)
        if self.version == "custom":
            package.apgd.n_restarts = package.fab.n_restarts = 1
        for targeted in (package.apgd_targeted, package.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, self.classes - 1)
        trace, x = sys.gettrace(), x.float().contiguous()  # in L1 the package flattens by views
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), _log_of_the_package() as log:
            try:
                x_adv, answers = package.run_standard_evaluation(x, y, batch_size=len(y))
            finally:
                sys.settrace(trace)  # the package switches tracing off
        return answers != y, x_adv, "".join(f"{line}\n" for line in log)


class _Counted(nn.Module):
    """The network as the package takes it, images and logits in float32, its passes counted."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, work: Work) -> None:
        super().__init__()
        self.model, self.dtype, self.work = model, dtype, work
        self.replayed = True
        self._climb: _Climb | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K)."""
        return self._logits(x) if self._climb is None else self._climb.logits(self._logits, x)

    def climbed(self, run: Callable[..., Any], x: Tensor, y: Tensor, *arguments: Any, **options: Any) -> Any:
        """`run`, one ascent of APGD: what is broken goes through the network no more."""
        self._climb = _Climb(y)
        try:
            return run(x, y, *arguments, **options)
        finally:
            self._climb = None

    def _logits(self, x: Tensor) -> Tensor:
        self.work.passed(len(x))
        network = once(self.model) if self.replayed else self.model
        return network(x.to(self.dtype)).float()


class _Climb:
    """The examples of one ascent, and those of them that go through the network.

    The package keeps the point that broke an example. Afterwards it is told that the example is right, without a
    gradient; the others' ascents are the same.
    """

    def __init__(self, y: Tensor) -> None:
        self._y = y
        self._rows = torch.arange(len(y), device=y.device)
        self._robust = torch.ones_like(y, dtype=torch.bool)

    def logits(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Logits (n, K) of the points `x` of all examples, in their order."""
        robust = self._robust[self._rows]
        if 4 * robust.sum() <= 3 * len(robust):  # by quarters: a GPU's graphs are made for a size
            self._rows = self._rows[robust] if robust.any() else self._rows[:1]
        passed = network(x[self._rows])
        self._robust[self._rows] &= passed.detach().argmax(dim=1) == self._y[self._rows]
        return F.one_hot(self._y, passed.shape[1]).to(passed).index_put((self._rows,), passed)


def _whole(loader: Loader, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor, Set]:
    """All images and labels of a set, on every process: batches are formed over the whole set."""
    spread = set_of(loader, model)
    if isinstance(spread, Examples):
        x, y = spread.images.__getitems__(torch.arange(len(spread)))
        return x.to(device), y.to(device), spread
    xs, ys, _ = zip(*spread, strict=True)
    return torch.cat(xs), torch.cat(ys), spread


@torch.no_grad()
def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float()


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


@contextmanager
def _log_of_the_package() -> Generator[list[str]]:
    """The lines of its logger, which are not shown."""
    logger, lines = logging.getLogger("auto-attack"), []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, level, propagate = Kept(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
