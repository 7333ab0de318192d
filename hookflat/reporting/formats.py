"""Tables of text as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated, with a line of headings."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return out.getvalue()


def without_empty(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [heads, ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in cells)


def latex(heads: Sequence[str], lines: Sequence[Sequence[str]], breaks: Sequence[int] = ()) -> str:
    """A tabular for the package booktabs; `breaks`: rows that a rule goes before."""
    out = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule"]
    out += [" & ".join(_latex(h) for h in heads) + " \\\\", "\\midrule"]
    for i, line in enumerate(lines):
        out += ["\\midrule"] if i in breaks else []
        out.append(" & ".join(_latex(c) for c in line) + " \\\\")
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", ""])


_ESCAPES = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
_ESCAPES |= {"|": "\\textbar{}", "<": "\\textless{}", ">": "\\textgreater{}", "[": "{[}", "]": "{]}"}
_ESCAPES |= {c: f"\\{c}" for c in "&%$#_{}"} | {"±": "$\\pm$", "−": "$-$", "×": "$\\times$"}


def _latex(text: str) -> str:
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)  # a minus, not a hyphen
    return "".join(_ESCAPES.get(character, character) for character in text)
