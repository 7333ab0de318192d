"""The correlations as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from hookflat.reporting.analysis import Analysis
from hookflat.reporting.foretelling import off
from hookflat.reporting.formats import csv_text, without_empty
from hookflat.reporting.phrases import estimate, minus
from hookflat.reporting.statistics import Estimate

ABOUT_STATISTICS = (
    "Correlations over the last networks; lower is flatter, so a positive one with RLoss speaks for the claim. 95 % "
    "percentile intervals of a bootstrap over configurations, all seeds of one together. “| clean”: the partial "
    "correlation, the clean error held fixed. “Strongest in”: the share of resamples in which the measure has the "
    "largest absolute Spearman."
)


def statistics_lines(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the correlations over all networks."""
    heads = [
        "measure",
        "with",
        "networks",
        "Pearson",
        "Spearman",
        "Kendall",
        "Pearson | clean",
        "Spearman | clean",
        "strongest in",
    ]
    return heads, [
        [
            analysis.names[measure],
            analysis.outcomes[key],
            str(correlation.models),
            *(estimate(e) for e in (correlation.pearson, correlation.spearman, correlation.kendall)),
            *(estimate(e) if e else "" for e in (correlation.partial_pearson, correlation.partial_spearman)),
            f"{analysis.best[key].shares[measure]:.0%}" if measure in _shares(analysis, key) else "",
        ]
        for (measure, key), correlation in sorted(
            analysis.overall.items(), key=lambda i: list(analysis.outcomes).index(i[0][1])
        )
    ]


_ABOUT_RANKING = {
    "left out: R²": "Left out: one method after the other is left out, a line fitted on the rest, and the left-out "
    "method predicted.",
    "off by": "Off by: the root mean squared error, every method counted once.",
    "baseline": "R²: against a baseline that knows nothing but the mean of the other methods' networks; better than it "
    "is what lies above 0 with the whole interval, which is for all measures together (those that rank the networks "
    "alike count once).",
    "behind the best": "Behind the best: its R² minus that of the first row, 95 % for these two alone; where the "
    "interval reaches 0, the first is not known to be better.",
    "beyond the fit": "Beyond the fit: its R² minus that of the RLoss on training images, a measure that says how far "
    "these were learnt by heart; the interval is for all measures together.",
    "measure": "All over the same networks, those that have every measure of the table; within methods over all that "
    "have the measure, as differences from their method's mean.",
    "Spearman |": "Spearman |: held fixed is what varies here, not in one configuration alone, of clean error, "
    "confidence and learning rate.",
    "Psi": "Psi: agreement in sign where one hyper-parameter alone changes, the mean over hyper-parameters (Jiang et "
    "al. 2020); −1 tells as much as 1, of a measure that falls where the outcome rises.",
}
"""What a column of the ranking is, by its heading, or by what that begins with."""


SEEDS = "between seeds"
"""The scope of correlations between networks that differ in nothing else."""
EARLY = "early-stopped"
"""The scope of those over early-stopped networks alone."""


def ranking_lines(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: which measure predicts which outcome, the best first."""
    fixed = next((ranked.fixed for ranked in analysis.ranking if ranked.fixed), ())
    given = f"Spearman | {', '.join(fixed)}"
    heads = ["measure", "predicted", "networks", "left out: R²", "behind the best", "beyond the fit", "off by"]
    heads += ["baseline", "fit", "Spearman", "within methods", given, "Psi"]
    lines = []
    for ranked in analysis.ranking:
        key, prediction = ranked.outcome, ranked.prediction
        within = analysis.within.get(("", ranked.measure, key))
        lines.append(
            [
                analysis.names[ranked.measure],
                analysis.outcomes[key],
                str(ranked.models),
                estimate(prediction.r2) if prediction else "",
                estimate(ranked.behind) if ranked.behind else "",
                estimate(ranked.beyond) if ranked.beyond else "",
                off(analysis, key, prediction.error) if prediction else "",
                off(analysis, key, prediction.baseline) if prediction else "",
                off(analysis, key, ranked.fit.error) if ranked.fit else "",
                estimate(ranked.spearman),
                estimate(within.spearman) if within else "",
                estimate(ranked.partial) if ranked.partial and ranked.fixed == fixed else "",
                minus(f"{ranked.granulated.value:.2f}") if ranked.granulated else "",
            ]
        )
    return heads, lines


def about_ranking(analysis: Analysis) -> str:
    """What the columns are that it has."""
    heads, _ = without_empty(*ranking_lines(analysis))
    return " ".join(text for begin, text in _ABOUT_RANKING.items() if any(h.startswith(begin) for h in heads))


def ranking_csv(analysis: Analysis) -> str:
    """The same with full numbers, and psi of every hyper-parameter."""
    heads = ["measure", "outcome", "r2", "r2_low", "r2_high", "error", "baseline", "methods", "beats_the_baseline"]
    heads += ["networks", "behind", "behind_low", "behind_high", "spearman", "spearman_low", "spearman_high"]
    heads += ["partial_spearman", "partial_low", "partial_high", "fixed", "Psi", "psi"]
    heads += ["fit_error", "beyond_the_fit", "beyond_low", "beyond_high"]
    rows = []
    for ranked in analysis.ranking:
        prediction, psi = ranked.prediction, ranked.granulated
        numbers = (*prediction.r2, prediction.error, prediction.baseline) if prediction else (None,) * 5
        rows.append(
            [
                *(ranked.measure, ranked.outcome, *map(_number, numbers)),
                *((prediction.methods, prediction.beats_the_baseline) if prediction else ("", "")),
                ranked.models,
                *(_number(v) for e in (ranked.behind, ranked.spearman, ranked.partial) for v in e or (None,) * 3),
                "; ".join(ranked.fixed),
                _number(psi.value if psi else None),
                "; ".join(f"{name} {value:.4f}" for name, value in psi.psi.items()) if psi else "",
                *map(_number, (ranked.fit.error if ranked.fit else None, *(ranked.beyond or (None,) * 3))),
            ]
        )
    return csv_text(heads, rows)


def within_lines(analysis: Analysis, titles: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the correlations within methods and between seeds; one line a method and measure."""
    heads = ["method", "measure", "networks", *(f"Spearman, {heading}" for heading in analysis.outcomes.values())]
    within = analysis.within | {(SEEDS, measure, key): c for (measure, key), c in analysis.seeds.items()}
    within |= {(EARLY, measure, key): c for (measure, key), c in analysis.early.items()}
    titles = titles | {"": "all, minus their method's mean", SEEDS: "seeds alone, minus their configuration's mean"}
    titles |= {EARLY: "early-stopped networks of all methods"}
    pairs = dict.fromkeys((measure, method) for method, measure, _ in within)
    lines = []
    for measure, method in sorted(
        pairs, key=lambda p: (analysis.measures.index(p[0]), p[1] not in ("", SEEDS, EARLY), titles.get(p[1], p[1]))
    ):
        correlations = [within.get((method, measure, key)) for key in analysis.outcomes]
        count = max(c.models for c in correlations if c)
        name = titles.get(method, method)
        cells = [
            estimate(c.spearman) + (f" of {c.models}" if c.models < count else "") if c else "" for c in correlations
        ]
        lines.append([name, analysis.names[measure], str(count), *cells])
    return heads, lines


def statistics_csv(analysis: Analysis) -> str:
    """Every coefficient and interval: over all networks, within methods, between seeds, of the paper's Table 1.

    `beyond_fit`: Spearman of the paper's measures, the RLoss on training images held fixed.
    """
    kinds = ("pearson", "spearman", "kendall", "partial_pearson", "partial_spearman")
    heads = ["scope", "measure", "outcome", "models", "clusters"]
    heads += [f"{kind}{part}" for kind in (*kinds, "beyond_fit") for part in ("", "_low", "_high")] + ["strongest"]
    rows = [("all", m, k, c, _shares(analysis, k).get(m)) for (m, k), c in analysis.overall.items()]
    rows += [(EARLY, m, k, c, None) for (m, k), c in analysis.early.items()]
    rows += [(scope or "within methods", m, k, c, None) for (scope, m, k), c in analysis.within.items()]
    rows += [(SEEDS, m, k, c, None) for (m, k), c in analysis.seeds.items()]
    rows += [
        ("the paper's Table 1", analysis.claim or "average flatness", k, c, None) for k, c in analysis.paper.items()
    ]
    lines = []
    for scope, m, k, c, best in rows:
        beyond = analysis.beyond_fit.get((m, k)) if scope == "all" else None
        estimates = _estimates([*(getattr(c, kind) for kind in kinds), beyond])
        lines.append([scope, m, k, c.models, c.clusters, *estimates, _number(best)])
    return csv_text(heads, lines)


def _shares(analysis: Analysis, key: str) -> dict[str, float]:
    return analysis.best[key].shares if key in analysis.best else {}


def _estimates(estimates: Sequence[Estimate | None]) -> list[str]:
    return [_number(v) for e in estimates for v in (e or (None, None, None))]


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"  # noqa: PLR0124
