"""Writing a report: one self-contained page, and the same as pictures and tables."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hookflat.errors import UserError
from hookflat.records.disk import has_failed
from hookflat.reporting.analysis import Analysis, analyse
from hookflat.reporting.correlations import (
    ABOUT_STATISTICS,
    about_ranking,
    ranking_csv,
    ranking_lines,
    statistics_csv,
    statistics_lines,
    within_lines,
)
from hookflat.reporting.drawings import drawings
from hookflat.reporting.formats import csv_text, latex, literal, markdown, without_empty
from hookflat.reporting.gathering import Gathered, LeftOut, gather
from hookflat.reporting.leaderboard import ABOUT_LEADERBOARD, leaderboard, leaderboard_csv, leaderboard_lines
from hookflat.reporting.page import Contents, page
from hookflat.reporting.protocols import protocol_lines
from hookflat.reporting.statistics import RESAMPLES
from hookflat.reporting.style import GRID, INK, PAGE, Drawing
from hookflat.reporting.table import Table1, about_table, as_csv, breaks, method_titles, table1
from hookflat.reporting.trust import flagged, trust_lines
from hookflat.reporting.words import details, verdict
from hookflat.terminal import printable

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "text.parse_math": False,  # names are names
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, eq=False)
class Report:
    """What was written: its folder, the verdict in three sentences and in detail, the table, the statistics, and what
    was left out."""

    folder: Path
    verdict: list[str]
    details: list[str]
    table: Table1
    analysis: Analysis
    left_out: list[LeftOut]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def report(
    folders: Sequence[str | Path] | str | Path,
    *,
    folder: str | Path | None = None,
    protocol: str = "",
    resamples: int = RESAMPLES,
) -> Report:
    """Read the runs in `folders` and write report.html, report.md, tables and figures into `folder`.

    `folder`: "report" in the first of them where nothing is said. `protocol`: take the numbers of this one of
    `hookflat eval`'s; otherwise those of the one that measured most runs. `resamples`: of the bootstrap. Raises
    `hookflat.UserError` where nothing is measured, or nothing can be written.
    """
    sources = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
    place = Path(folder) if folder else sources[0] / "report"
    gathered = gather(sources, protocol=protocol, ignore=place)
    with mpl.rc_context(_STYLE):
        table = table1(gathered)
        analysis = analyse(gathered, resamples)
        drawn = drawings(gathered, table)
        said, more = verdict(analysis, gathered) + trust_lines(gathered), details(analysis, gathered)
        try:
            _write(place, Contents(gathered, table, analysis, drawn, said, more))
        except OSError as error:
            if has_failed(error):
                error.filename = error.filename or str(place)
                raise
            raise UserError(
                f"{place}: cannot write the report: {error.strerror or error} (choose another --out)"
            ) from error
    return Report(place, said, more, table, analysis, gathered.left_out)


def _write(place: Path, contents: Contents) -> None:
    table, analysis = contents.table, contents.analysis
    (place / "figures").mkdir(parents=True, exist_ok=True)
    inline, pictures = {}, {}
    for drawing in contents.drawn:
        files = [place / "figures" / f"{drawing.name}.{kind}" for kind in ("svg", "png", "pdf")]
        if drawing.figure is None:
            for file in files:
                file.unlink(missing_ok=True)  # of an earlier report on the same folder
            continue
        _settle(drawing.figure)
        text = svg(drawing)
        inline[drawing.name] = inlined(drawing, text)
        files[0].write_text(_without_links(text), encoding="utf-8")
        drawing.figure.savefig(files[1], dpi=200)
        pictures[drawing.name] = _picture(drawing, files[1])
        drawing.figure.savefig(files[2], metadata={"CreationDate": None})
    (place / "report.html").write_text(page(contents, inline, pictures), encoding="utf-8")
    (place / "report.md").write_text(_markdown(contents), encoding="utf-8")
    heads, lines = table.texts()
    (place / "table1.csv").write_text(as_csv(table), encoding="utf-8")
    (place / "table1.tex").write_text(latex(heads, lines, breaks(table)), encoding="utf-8")
    heads, lines = statistics_lines(analysis)
    (place / "statistics.tex").write_text(latex(heads, lines), encoding="utf-8")
    (place / "ranking.csv").write_text(ranking_csv(analysis), encoding="utf-8")
    (place / "statistics.csv").write_text(statistics_csv(analysis), encoding="utf-8")
    if standings := leaderboard(table):
        (place / "leaderboard.csv").write_text(leaderboard_csv(standings, table), encoding="utf-8")
    (place / "models.csv").write_text(_models_csv(contents.gathered), encoding="utf-8")


def _settle(figure: Figure) -> None:
    """Lay the figure out once, not again for every file."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")


def svg(drawing: Drawing) -> str:
    """The figure as SVG, the same bytes each time; names in it without the control characters that XML refuses."""
    out = io.StringIO()
    figure: Figure = drawing.figure  # ty: ignore[invalid-assignment]
    with mpl.rc_context({"svg.hashsalt": drawing.name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return printable(out.getvalue())


def inlined(drawing: Drawing, text: str) -> str:
    """The figure's SVG as an element of a page: its own ids, colours that follow the page's, points that are links."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{drawing.name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{drawing.name}-\1)", text)
    text = text.replace('<use xlink:href="#', f'<use xlink:href="#{drawing.name}-')
    text = re.sub(_LINK, lambda m: f'<a href="#{m[1]}"><title>{m[1].partition("-")[2]}</title>{m[2]}</a>', text)
    for colour, variable in _FOLLOWING.items():
        text = text.replace(colour, variable)
    text = compact(text)
    width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', text)[1]) / 72  # ty: ignore[not-subscriptable]
    size = f"max-width: {120 * width:.0f}px"
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(printable(drawing.title))}" style="{size}" ', 1)


def compact(text: str) -> str:
    """An SVG with coordinates to 1/100 of a point, without white space, and halos drawn with what they surround."""
    halo = r'<path d="([^"]*)" style="([^"]*stroke: [^"]*)"/>\s*<path d="\1" style="[^"]*"/>'
    text = re.sub(halo, r'<path d="\1" style="\2; paint-order: stroke"/>', text)
    used = dict.fromkeys(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    short = {name: f"{name.partition('-')[0]}-{i}" for i, name in enumerate(used)}
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{short[m[1]]}"' if m[1] in short else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)([^")]+)', lambda m: m[1] + short[m[2]], text)
    text = re.sub(r'\b(?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text))
    alike = r'<g clip-path="([^"]*)"><use[^>]*/></g>(?:<g clip-path="\1"><use[^>]*/></g>)+'
    return re.sub(alike, lambda m: f'<g clip-path="{m[1]}">{"".join(re.findall("<use[^>]*/>", m[0]))}</g>', text)


def _picture(drawing: Drawing, png: Path) -> str:
    """The figure's PNG as an element of a page."""
    data = base64.b64encode(png.read_bytes()).decode()
    return f'<img alt="{escape(printable(drawing.title))}" src="data:image/png;base64,{data}">'


_LINK = re.compile(r'<a xlink:href="#([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
_FOLLOWING = {INK: "currentColor", "#ffffff": "none", PAGE: "var(--page)", GRID: "var(--grid)"}
"""Colours of a figure that are the page's; white is the paper behind it."""


def _without_links(text: str) -> str:
    """A file of its own has no runs to lead to."""
    return _LINK.sub(r"\2", text)


def _models_csv(gathered: Gathered) -> str:
    """Every number of every network."""
    rows = [(c, run, network) for c in gathered.configurations for run in c.runs for network in run.networks.values()]
    names = {part: list(dict.fromkeys(k for *_, n in rows for k in getattr(n, part))) for part in ("test", "train")}
    heads = [
        "run",
        "recipe",
        "setting",
        "seed",
        "network",
        "epoch",
        *(f"{p}_{k}" for p, ks in names.items() for k in ks),
    ]
    return csv_text(
        heads,
        [
            [
                run.name,
                run.method,
                " ".join(f"{k}={v}" for k, v in configuration.setting),
                run.seed,
                network.label,
                "" if network.epoch is None else network.epoch,
                *(getattr(network, p).get(k, "") for p, ks in names.items() for k in ks),
            ]
            for configuration, run, network in rows
        ],
    )


def _markdown(contents: Contents) -> str:
    gathered, table, analysis = contents.gathered, contents.table, contents.analysis
    parts = ["# Report", *map(literal, contents.said)]
    if standings := leaderboard(table):
        parts += ["## Leaderboard", literal(ABOUT_LEADERBOARD)]
        parts += [markdown(*without_empty(*leaderboard_lines(standings, table)))]
    parts += ["## Table 1", literal(about_table(table)), markdown(*table.texts())]
    if flags := flagged(gathered):
        rows = [(run.name, label, words) for run, label, words in flags]
        parts += ["### Signs that RErr is too low", markdown(("run", "network", "signs"), rows)]
    parts.append("## Figures")
    for drawing in contents.drawn:
        title = literal(drawing.title)
        picture = f"![{title}](figures/{drawing.name}.png)\n\n" if drawing.figure else "Not drawn. "
        parts.append(f"### {title}\n\n{picture}{literal(drawing.caption)}")
    parts += ["## Which measure predicts?", literal(about_ranking(analysis))]
    parts += [markdown(*without_empty(*ranking_lines(analysis)))]
    parts += ["## Statistics", *map(literal, contents.details)]
    parts += [literal(ABOUT_STATISTICS), markdown(*without_empty(*statistics_lines(analysis)))]
    heads, lines = within_lines(analysis, method_titles(table))
    parts += ["### Within methods", markdown(heads, lines)] if lines else []
    protocol = (f"- {literal(text)}\n" for text in protocol_lines(gathered, table.attack))
    parts += ["## How it was measured", "".join(protocol)]
    if gathered.left_out:
        left_out = (f"- {literal(f'{name}: {why}')}\n" for name, why in gathered.left_out)
        parts += ["## Left out", "".join(left_out)]
    return "\n\n".join(part.strip() for part in parts) + "\n"
