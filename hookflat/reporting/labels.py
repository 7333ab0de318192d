"""Labels beside points, without one on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = tuple[float, float]

_DISTANCES = (6, 9, 13, 18, 25, 34, 45, 58, 74, 92, 112, 135)
"""From the point to the label's nearest corner or edge, in typographic points."""
_ANGLES = np.radians([0, 90, 180, 270, 45, 315, 135, 225, *(22.5 + 45 * i for i in range(8))])
_FAR = 8
"""From here on, and where another labelled point is as near, a line leads back to the point."""
_LABEL, _OUTSIDE, _POINT, _CROSSING, _THROUGH, _LINE = 1000.0, 1000.0, 60.0, 40.0, 120.0, 12.0
"""What it costs to cover a label or a fit, to leave the axes, to cover a point, to cross a line, to cross a label with
one, and to need one: as much as so many typographic points of distance."""


class _Places(NamedTuple):
    """Where a label may go: boxes (M, 4), lines to them (M, 2, 2), of no length where not needed, their cost (M,)."""

    boxes: Array
    lines: Array
    cost: Array


def label(
    figure: Figure,
    axes: Any,
    points: Sequence[Point],
    texts: Sequence[str],
    others: Sequence[Point] = (),
    size: float = 8,
    halo: str = "white",
    fits: Sequence[tuple[Point, Point]] = (),
) -> list[Bbox]:
    """Write each of `texts` beside its point of `axes`, clear of all else; the labels' boxes in pixels.

    Each label takes the place around its point that costs least, the most crowded first, in several rounds, since a
    place may become free. The figure's layout is fixed by this. `halo`: a colour around the letters, where they cross
    a line. `fits`: the ends of each line that was fitted.
    """
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine("none")
    unit = figure.dpi / 72
    at = axes.transData.transform(np.reshape(points, (-1, 2)))
    every = np.concatenate([at, axes.transData.transform(np.reshape(others, (-1, 2)))])
    dots = np.concatenate([every - 3.5 * unit, every + 3.5 * unit], axis=1)
    around = [withStroke(linewidth=2.2, foreground=halo)]
    written = [
        axes.annotate(text, point, (0, 0), textcoords="offset points", fontsize=size, path_effects=around)
        for text, point in zip(texts, points, strict=True)
    ]
    inside = np.array(axes.get_window_extent().extents)
    drawn = axes.transData.transform(np.reshape(fits, (-1, 2))).reshape(-1, 2, 2)
    places = []
    for i, text in enumerate(written):
        extent = text.get_window_extent()
        boxes = _around(at[i], extent.width + 2 * unit, extent.height + 2 * unit, unit)
        places.append(_places(boxes, at[i], np.delete(at, i, axis=0), dots, drawn, inside, unit))
    legend = [axes.get_legend().get_window_extent().extents] if axes.get_legend() else []
    crowded = np.argsort(-(np.linalg.norm(at[:, None] - every[None], axis=2) < 40 * unit).sum(axis=1), kind="stable")
    chosen: dict[int, int] = {}
    for _ in range(4):
        before = dict(chosen)
        for i in crowded.tolist():
            taken = [j for j in chosen if j != i]
            boxes = np.array([*legend, *(places[j].boxes[chosen[j]] for j in taken)]).reshape(-1, 4)
            lines = np.array([places[j].lines[chosen[j]] for j in taken]).reshape(-1, 2, 2)
            chosen[i] = int((places[i].cost + _conflicts(places[i], boxes, lines)).argmin())
        if chosen == before:
            break
    for i, text in enumerate(written):
        x, y, _, _ = places[i].boxes[chosen[i]]
        text.set_position(((x - at[i][0]) / unit + 1, (y - at[i][1]) / unit + 1))
        line = places[i].lines[chosen[i]]
        if _lengths(line[None])[0]:
            ends = axes.transData.inverted().transform(line)
            axes.plot(*ends.T, color="0.6", lw=0.6, zorder=1.5, scalex=False, scaley=False)
    return [Bbox.from_extents(*places[i].boxes[chosen[i]]) for i in range(len(written))]


def _around(at: Array, width: float, height: float, unit: float) -> Array:
    """Boxes (M, 4) around a point: left, bottom, right, top."""
    far = np.repeat(_DISTANCES, len(_ANGLES)) * unit
    dx, dy = np.tile(np.cos(_ANGLES), len(_DISTANCES)), np.tile(np.sin(_ANGLES), len(_DISTANCES))
    left = at[0] + far * dx - width * np.select([dx > 0.3, dx < -0.3], [0.0, 1.0], 0.5)
    bottom = at[1] + far * dy - height * np.select([dy > 0.3, dy < -0.3], [0.0, 1.0], 0.5)
    return np.stack([left, bottom, left + width, bottom + height], axis=1)


def _places(boxes: Array, at: Array, strangers: Array, dots: Array, fits: Array, inside: Array, unit: float) -> _Places:
    """What each box around the point `at` costs by itself; `strangers`: the other labelled points; `fits`: lines."""
    ends = np.clip(at, boxes[:, :2], boxes[:, 2:])
    distance = np.linalg.norm(ends - at, axis=1) / unit
    nearest = np.clip(strangers[:, None], boxes[None, :, :2], boxes[None, :, 2:]) - strangers[:, None]
    mistaken = (np.linalg.norm(nearest, axis=2) / unit <= distance + 4).any(axis=0)
    needed = (distance >= _FAR) | mistaken
    across = _through(fits, boxes).sum(axis=0)
    lines = np.stack([np.broadcast_to(at, ends.shape), np.where(needed[:, None], ends, at)], axis=1)
    outside = (boxes[:, :2] < inside[:2]).any(axis=1) | (boxes[:, 2:] > inside[2:]).any(axis=1)
    cost = distance + _LINE * mistaken + _OUTSIDE * outside + _LABEL * across + _POINT * _overlaps(boxes, dots)
    return _Places(boxes, lines, cost)


def _conflicts(places: _Places, boxes: Array, lines: Array) -> Array:
    """What each place costs besides (M,), given the boxes and lines of the other labels."""
    through = _through(lines, places.boxes).sum(axis=0) + _through(places.lines, boxes).sum(axis=1)
    crossings = _crossings(places.lines, lines)
    return _LABEL * _overlaps(places.boxes, boxes) + _THROUGH * through + _CROSSING * crossings


def _lengths(lines: Array) -> Array:
    return np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)


def _overlaps(places: Array, boxes: Array) -> Array:
    """How many boxes each place covers a part of: (M,)."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    return (low < high).all(axis=2).sum(axis=1)


def _through(lines: Array, boxes: Array) -> Array:
    """Which lines go through which boxes: (lines, boxes)."""
    start = lines[:, None, 0]
    step = lines[:, None, 1] - start
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = (boxes[None, :, :2] - start) / step, (boxes[None, :, 2:] - start) / step
    enters, leaves = np.fmin(*ends).max(axis=2), np.fmax(*ends).min(axis=2)
    return ((enters < leaves) & (enters < 1) & (leaves > 0)).astype(float)


def _crossings(lines: Array, others: Array) -> Array:
    """How many of `others` each line crosses: (M,)."""
    a, b = lines[:, None, 0], lines[:, None, 1]
    c, d = others[None, :, 0], others[None, :, 1]
    side = lambda p, q, r: np.sign((q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0])
    return ((side(a, b, c) != side(a, b, d)) & (side(c, d, a) != side(c, d, b))).sum(axis=1)
