"""hookflat: adversarial training as composable plugins, and the flatness of the robust loss for any network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hookflat.errors import TrainingFailed, UserError
from hookflat.threads import wait_passively

wait_passively()  # before torch is imported

if TYPE_CHECKING:
    from hookflat.attacks import pgd as pgd
    from hookflat.autoattacks import autoattack as autoattack
    from hookflat.curvature import hessian_eigenvalues as hessian_eigenvalues
    from hookflat.curvature import hessian_trace as hessian_trace
    from hookflat.curvature import relative_flatness as relative_flatness
    from hookflat.curvature import sharpness as sharpness
    from hookflat.evaluation import evaluate as evaluate
    from hookflat.flatness import average_flatness as average_flatness
    from hookflat.flatness import worst_flatness as worst_flatness
    from hookflat.hookspecs import hookimpl as hookimpl
    from hookflat.landscapes import landscape as landscape
    from hookflat.landscapes import landscape_2d as landscape_2d
    from hookflat.main import run as run
    from hookflat.reporting import report as report
    from hookflat.rescaling import rescale as rescale
    from hookflat.robustness import robust_loss as robust_loss

_WHERE = {
    "autoattack": "hookflat.autoattacks",
    "average_flatness": "hookflat.flatness",
    "evaluate": "hookflat.evaluation",
    "hessian_eigenvalues": "hookflat.curvature",
    "hessian_trace": "hookflat.curvature",
    "hookimpl": "hookflat.hookspecs",
    "landscape": "hookflat.landscapes",
    "landscape_2d": "hookflat.landscapes",
    "pgd": "hookflat.attacks",
    "relative_flatness": "hookflat.curvature",
    "report": "hookflat.reporting",
    "rescale": "hookflat.rescaling",
    "robust_loss": "hookflat.robustness",
    "run": "hookflat.main",
    "sharpness": "hookflat.curvature",
    "worst_flatness": "hookflat.flatness",
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
