"""Labels beside points, without one on another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
_FAR = 12
"""From here on a line leads back to the point."""
_LABEL, _OUTSIDE, _POINT, _CROSSING, _THROUGH = 1000.0, 1000.0, 60.0, 40.0, 120.0
"""What it costs to cover a label, to leave the axes, to cover a point, to cross a line and to cross a label with one:
as much as so many typographic points of distance."""


def label(
    figure: Figure,
    axes: Any,
    points: Sequence[Point],
    texts: Sequence[str],
    others: Sequence[Point] = (),
    size: float = 8,
    halo: str = "white",
) -> list[Bbox]:
    """Write each of `texts` beside its point of `axes`, clear of labels, points and legend; their boxes in pixels.

    Each label takes the place around its point that costs least, the most crowded first, in several rounds, since a
    place may become free. The figure's layout is fixed by this. `halo`: a colour around the letters, where they cross
    a line.
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
    extents = [text.get_window_extent() for text in written]
    places = [_places(p, e.width + 2 * unit, e.height, unit) for p, e in zip(at, extents, strict=True)]
    leaders = [_leaders(p, boxes) for p, boxes in zip(at, places, strict=True)]
    legend = [axes.get_legend().get_window_extent().extents] if axes.get_legend() else []
    inside = np.array(axes.get_window_extent().extents)
    crowded = np.argsort(-(np.linalg.norm(at[:, None] - every[None], axis=2) < 40 * unit).sum(axis=1), kind="stable")
    chosen: dict[int, int] = {}
    for _ in range(4):
        before = dict(chosen)
        for i in crowded.tolist():
            taken = [j for j in chosen if j != i]
            boxes = np.array([*legend, *(places[j][chosen[j]] for j in taken)]).reshape(-1, 4)
            lines = np.array([leaders[j][chosen[j]] for j in taken]).reshape(-1, 2, 2)
            chosen[i] = int(_cost(places[i], leaders[i], dots, boxes, lines, inside, unit).argmin())
        if chosen == before:
            break
    for i, text in enumerate(written):
        x, y, _, _ = places[i][chosen[i]]
        text.set_position(((x - at[i][0]) / unit + 1, (y - at[i][1]) / unit))
        line = leaders[i][chosen[i]]
        if _lengths(line[None])[0] >= _FAR * unit:
            ends = axes.transData.inverted().transform(line)
            axes.plot(*ends.T, color="0.6", lw=0.6, zorder=1.5, scalex=False, scaley=False)
    return [Bbox.from_extents(*places[i][chosen[i]]) for i in range(len(written))]


def _places(at: Array, width: float, height: float, unit: float) -> Array:
    """Boxes (M, 4) around a point: left, bottom, right, top."""
    far = np.repeat(_DISTANCES, len(_ANGLES)) * unit
    dx, dy = np.tile(np.cos(_ANGLES), len(_DISTANCES)), np.tile(np.sin(_ANGLES), len(_DISTANCES))
    left = at[0] + far * dx - width * np.select([dx > 0.3, dx < -0.3], [0.0, 1.0], 0.5)
    bottom = at[1] + far * dy - height * np.select([dy > 0.3, dy < -0.3], [0.0, 1.0], 0.5)
    return np.stack([left, bottom, left + width, bottom + height], axis=1)


def _leaders(at: Array, boxes: Array) -> Array:
    """Lines (M, 2, 2) from a point to the nearest of each box."""
    ends = np.clip(at, boxes[:, :2], boxes[:, 2:])
    return np.stack([np.broadcast_to(at, ends.shape), ends], axis=1)


def _cost(places: Array, leaders: Array, dots: Array, boxes: Array, lines: Array, inside: Array, unit: float) -> Array:
    """(M,) of every place, given the boxes and lines of the other labels."""
    lengths = _lengths(leaders) / unit
    own = lengths >= _FAR
    drawn = lines[_lengths(lines) >= _FAR * unit]
    outside = (places[:, :2] < inside[:2]).any(axis=1) | (places[:, 2:] > inside[2:]).any(axis=1)
    cost = lengths + _OUTSIDE * outside + _POINT * _overlaps(places, dots) + _LABEL * _overlaps(places, boxes)
    cost += _THROUGH * (_through(drawn, places).sum(axis=0) + own * _through(leaders, boxes).sum(axis=1))
    return cost + _CROSSING * own * _crossings(leaders, drawn)


def _lengths(lines: Array) -> Array:
    return np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)


def _overlaps(places: Array, boxes: Array) -> Array:
    """How many boxes each place covers a part of: (M,)."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    return (low < high).all(axis=2).sum(axis=1)


def _through(lines: Array, boxes: Array) -> Array:
    """Which lines go through which boxes: (lines, boxes)."""
    steps = np.linspace(0, 1, 25)[:, None]
    on = lines[:, :1] + steps * (lines[:, 1:] - lines[:, :1])
    within = np.all((on[:, None] > boxes[None, :, None, :2]) & (on[:, None] < boxes[None, :, None, 2:]), axis=3)
    return np.any(within, axis=2).astype(float)


def _crossings(lines: Array, others: Array) -> Array:
    """How many of `others` each line crosses: (M,)."""
    a, b = lines[:, None, 0], lines[:, None, 1]
    c, d = others[None, :, 0], others[None, :, 1]
    side = lambda p, q, r: np.sign((q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0])
    return ((side(a, b, c) != side(a, b, d)) & (side(c, d, a) != side(c, d, b))).sum(axis=1)
