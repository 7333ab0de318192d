"""What the answers of hooks must be: a wrong one is told with its plugin, and not where somebody uses it later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hookflat.functional.data import Data
from hookflat.terminal import shortened


def _schedules(value: Any) -> bool:
    return not isinstance(value, ReduceLROnPlateau) and all(
        callable(getattr(value, name, None)) for name in ("step", "state_dict", "load_state_dict")
    )


def _figures(value: Any) -> bool:
    return isinstance(value, dict) and all(callable(getattr(figure, "savefig", None)) for figure in value.values())


# where None is an answer, others are asked, or the loop says what is missing
_ANSWERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "build_data": ("a hookflat.Data", lambda value: isinstance(value, Data)),
    "build_model": ("a torch.nn.Module", lambda value: isinstance(value, nn.Module)),
    "build_optimizer": ("a torch.optim.Optimizer", lambda value: isinstance(value, Optimizer)),
    "build_schedule": ("a torch scheduler, with its state and a step that takes no value", _schedules),
    "attack_objective": ("a function of network and images", lambda value: value is None or callable(value)),
    "gradients": ("the loss, a tensor", lambda value: value is None or isinstance(value, Tensor)),
    "eval_model": ("a torch.nn.Module", lambda value: isinstance(value, nn.Module)),
    "draw": ("figures by name, a dict", _figures),
}


def wrong_answer(hook: str, answer: Any) -> str | None:
    """What is wrong with it, in words; None where nothing is."""
    if hook not in _ANSWERS:
        return None
    meant, fits = _ANSWERS[hook]
    wrong = [a for a in (answer if hook == "draw" else [answer]) if not fits(a)]  # all that draw answer
    return f"should return {meant}, not {shortened(wrong[0])}" if wrong else None
