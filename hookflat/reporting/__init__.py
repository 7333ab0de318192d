"""From folders of runs to a page: the table, the figures, the statistics and what they say."""

from hookflat.reporting.writing import Report, report

__all__ = ["Report", "report"]
