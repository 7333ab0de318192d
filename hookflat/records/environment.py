"""Where a run was made: versions, code revision, hardware, command line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("hookflat", "torch", "torchvision", "timm", "accelerate", "pluggy", "datasets", "pyautoattack", "numpy")


def environment(plugin_files: tuple[Path, ...] = (), packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, code revision, hardware and command line; `packages`: others whose versions matter, by name."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    tf32 = torch.backends.cudnn.conv.fp32_precision != "ieee"  # ty: ignore[missing-attribute]
    return {
        "command": sys.argv,
        "plugin_files": {str(f): f.read_text(encoding="utf-8") for f in plugin_files},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in dict.fromkeys([*_PACKAGES, *packages])},
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "tf32": {"training": tf32, "measures": False} if gpus else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_revision() -> str | None:
    """The revision of hookflat's own clone, "+" behind it when there are changes; None outside a clone."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        if not (root / ".git").exists():
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
