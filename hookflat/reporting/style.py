"""What every figure of a report is. Colours are chosen to be read on white and on black."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

INK, PAGE, GRID = "#1f2328", "#fefefe", "#ebebeb"
"""Text and axes, the page behind, and `tidy`'s grid: what a dark page changes."""
TREND = "#d1495b"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with its title and caption; `figure` None where the runs have no data for it, `caption` says what."""

    name: str
    title: str
    caption: str
    figure: Figure | None
