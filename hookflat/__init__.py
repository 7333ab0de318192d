"""hookflat: adversarial training as composable plugins, and the flatness of the robust loss for any network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hookflat.errors import TrainingFailed, UserError
from hookflat.threads import wait_passively

wait_passively()  # before torch is imported

if TYPE_CHECKING:
    from hookflat.evaluation.evaluate import evaluate as evaluate
    from hookflat.evaluation.rescaling import rescale as rescale
    from hookflat.functional.attacks import pgd as pgd
    from hookflat.functional.autoattack import autoattack as autoattack
    from hookflat.functional.curvature import hessian_eigenvalues as hessian_eigenvalues
    from hookflat.functional.curvature import hessian_trace as hessian_trace
    from hookflat.functional.curvature import relative_flatness as relative_flatness
    from hookflat.functional.curvature import sharpness as sharpness
    from hookflat.functional.flatness import average_flatness as average_flatness
    from hookflat.functional.flatness import worst_flatness as worst_flatness
    from hookflat.functional.landscapes import landscape as landscape
    from hookflat.functional.landscapes import landscape_2d as landscape_2d
    from hookflat.functional.robustness import robust_loss as robust_loss
    from hookflat.hookspecs import hookimpl as hookimpl
    from hookflat.reporting import report as report
    from hookflat.training.entry import run as run

_WHERE = {
    "autoattack": "hookflat.functional.autoattack",
    "average_flatness": "hookflat.functional.flatness",
    "evaluate": "hookflat.evaluation.evaluate",
    "hessian_eigenvalues": "hookflat.functional.curvature",
    "hessian_trace": "hookflat.functional.curvature",
    "hookimpl": "hookflat.hookspecs",
    "landscape": "hookflat.functional.landscapes",
    "landscape_2d": "hookflat.functional.landscapes",
    "pgd": "hookflat.functional.attacks",
    "relative_flatness": "hookflat.functional.curvature",
    "report": "hookflat.reporting",
    "rescale": "hookflat.evaluation.rescaling",
    "robust_loss": "hookflat.functional.robustness",
    "run": "hookflat.training.entry",
    "sharpness": "hookflat.functional.curvature",
    "worst_flatness": "hookflat.functional.flatness",
}

__all__ = [
    "TrainingFailed",
    "UserError",
    "autoattack",
    "average_flatness",
    "evaluate",
    "hessian_eigenvalues",
    "hessian_trace",
    "hookimpl",
    "landscape",
    "landscape_2d",
    "pgd",
    "relative_flatness",
    "report",
    "rescale",
    "robust_loss",
    "run",
    "sharpness",
    "worst_flatness",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import hookflat` and `hookflat --help` stay fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hookflat' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
