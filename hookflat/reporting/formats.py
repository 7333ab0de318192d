"""Tables of text as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from hookflat.terminal import printable

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠].")
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")
_MARKUP = re.compile(r"[\\`*~$]|\](?=[\[(:])|<(?=[a-zA-Z/!?])|&(?=[\w#]+;)|(?<![^\W_])_|_(?![^\W_])|^>")


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated, with a line of headings."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_no_formula(head) for head in heads])
    writer.writerows([_no_formula(cell) for cell in line] for line in lines)
    return out.getvalue()


def _no_formula(cell: object) -> object:
    """A text that a spreadsheet would compute, behind an apostrophe, and without control characters."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def without_empty(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands."""
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[literal(str(c)).replace("|", "\\|") for c in line] for line in (heads, *lines)]
    cells.insert(1, ["---"] * len(heads))
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def literal(text: str) -> str:
    """A text in one line of Markdown that is shown as it is: no markup, no link, no element of HTML."""
    line = printable(" ".join(text.split()))
    return re.sub(r"^([#+-]|\d+[.)])(?= )", r"\\\1", _MARKUP.sub(r"\\\g<0>", line))


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
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "−", printable(text))  # a minus, not a hyphen
    return "".join(_ESCAPES.get(character, character) for character in text)
