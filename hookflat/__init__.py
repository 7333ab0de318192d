"""hookflat: adversarial training as composable plugins, and the flatness of the robust loss for any network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hookflat.errors import TrainingFailed, UserError

if TYPE_CHECKING:
    from hookflat.attacks import pgd as pgd
    from hookflat.evaluation import average_flatness as average_flatness
    from hookflat.evaluation import robust_loss as robust_loss
    from hookflat.hookspecs import hookimpl as hookimpl
    from hookflat.main import run as run

_WHERE = {
    "average_flatness": "hookflat.evaluation",
    "hookimpl": "hookflat.hookspecs",
    "pgd": "hookflat.attacks",
    "robust_loss": "hookflat.evaluation",
    "run": "hookflat.main",
}

__all__ = ["TrainingFailed", "UserError", "average_flatness", "hookimpl", "pgd", "robust_loss", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import hookflat` and `hookflat --help` stay fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hookflat' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
