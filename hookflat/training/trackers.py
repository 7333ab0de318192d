"""Trackers: a run's curves, figures and recipe in TensorBoard, Weights & Biases, trackio ..., through accelerate.

The run folder stays the source of truth: a tracker gets a copy of each line of metrics.jsonl, and nothing is read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hookflat.recipe.recipe import Recipe
from hookflat.recipe.tables import flat
from hookflat.records.folder import RunFolder
from hookflat.records.quantities import Quantity, quantity

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.figure import Figure


class Trackers:
    """The trackers of one run, on the main process; without any it does nothing."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, accelerator: Accelerator, quantities: Mapping[str, Quantity]
    ) -> None:
        self.trackers: Sequence[Any] = ()
        self.quantities = quantities
        if not recipe.track.trackers or not accelerator.is_main_process:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        config = {".".join(key): _plain(value) for key, value in flat(recipe.tables)}
        trackers = []
        for name in recipe.track.trackers:
            cls: Any = LOGGER_TYPE_TO_CLASS[name]
            place = (str(folder.trackers),) if cls.requires_logging_directory else ()
            named = {"name": folder.path.name} if name in ("wandb", "trackio") else {}
            tracker = cls(recipe.track.project, *place, **named)
            tracker.start()
            tracker.store_init_configuration(config)
            trackers.append(tracker)
        self.trackers = trackers

    def log(self, record: dict[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl, named stage/split/label; shares in %."""
        place = f"{record.get('stage')}/{record.get('split')}"
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        values = {}
        for name, value in numbers.items():
            what = quantity(name, self.quantities)
            share = what.unit == "share"
            values[f"{place}/{what.label}" + (" in %" if share else "")] = 100 * value if share else value
        for tracker in self.trackers if values else ():
            tracker.log(values, step=record.get("step"))

    def draw(self, figures: dict[str, Figure], step: int) -> None:
        """Figures, where the tracker takes images."""
        for tracker in self.trackers:
            for name, figure in figures.items() if hasattr(tracker, "log_images") else ():
                figure.canvas.draw()
                image = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # ty: ignore[missing-attribute]
                if tracker.name == "tensorboard":
                    tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")
                else:
                    tracker.log_images({name: [image]}, step=step)

    def close(self) -> None:
        """Write everything out."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = ()


def _plain(value: Any) -> int | float | str | bool:
    """TensorBoard takes no lists."""
    return value if isinstance(value, int | float | str | bool) else json.dumps(value)
