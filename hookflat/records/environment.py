"""Where a run was made: versions, code revision, hardware, command line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("hookflat", "torch", "torchvision", "timm", "accelerate", "pluggy", "datasets", "pyautoattack", "numpy")


def environment(plugin_files: Mapping[str, Path] | None = None, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, code revision, hardware and command line; `packages`: others whose versions matter, by name."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    tf32 = torch.backends.cudnn.conv.fp32_precision != "ieee"  # ty: ignore[missing-attribute]
    return {
        "command": sys.argv,
        "plugin_files": {name: _text(file) for name, file in (plugin_files or {}).items()},
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


def changed_code(before: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """Which of these files of plugins have other code than when `before` was written, in words."""
    then = {Path(name).name: text for name, text in _table(before, "plugin_files").items()}
    known = {Path(name).name: file for name, file in files.items()}
    return [f"{name} has changed" for name, file in known.items() if name in then and _text(file) != then[name]]


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has another version than when `before` was written, in words."""
    then, there = ({"Python": e.get("python"), **_table(e, "packages")} for e in (before, now))
    both = then.keys() & there.keys()
    changed = [f"{name} {then[name]} is {there[name]} now" for name in both if then[name] != there[name]]
    old, new = (e.get("git_revision") for e in (before, now))
    if isinstance(old, str) and isinstance(new, str) and old != new:
        changed.append(f"hookflat's revision {old[:9]} is {new[:9]} now")
    return sorted(changed)


def foreign_plugins(of: Mapping[str, Any]) -> str:
    """Files and packages whose plugins may be needed where a run that was made by these is opened, in words."""
    files = [name for name in _table(of, "plugin_files") if name.endswith(".py")]
    packages = [f"{name} {version}" for name, version in _table(of, "packages").items() if name not in _PACKAGES]
    told = [f"--plugin {file}, whose text is in environment.json" for file in files]
    return ", ".join(told + ([f"the package {', '.join(packages)}"] if packages else []))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _table(of: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = of.get(name)
    return table if isinstance(table, dict) else {}


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
