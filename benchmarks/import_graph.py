"""The import graph of hookflat: modules, arrows, circles, and arrows that point upward through the layers.

    python benchmarks/import_graph.py [ROOT]

`ROOT`: another checkout, to compare. Layers are the folders of `hookflat/`, in the order of docs/architecture.md.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

LAYERS = ("functional", "reading", "recipe", "records", "training", "evaluation", "studies", "reporting", "cli")


def imported(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether for annotations alone) of everything that a file imports of hookflat."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for_annotations = {id(inner) for n in checking for inner in ast.walk(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hookflat":
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in for_annotations


def graph(root: Path) -> nx.DiGraph:
    """Modules and arrows; an arrow's `annotation` says that it serves annotations alone."""
    files = {p: ".".join(p.relative_to(root).with_suffix("").parts) for p in (root / "hookflat").rglob("*.py")}
    names = {name.removesuffix(".__init__"): file for file, name in files.items()}
    imports = nx.DiGraph()
    imports.add_nodes_from(names)
    for name, file in names.items():
        for target, annotation in imported(file):
            module = next((t for t in (target, target.rpartition(".")[0]) if t in names), None)
            if module and module not in (name, "hookflat"):
                known = imports.get_edge_data(name, module, {"annotation": True})
                imports.add_edge(name, module, annotation=annotation and known["annotation"])
    return imports


def layer(module: str) -> int:
    """The place of a module's layer; -1 for what lies below all of them."""
    folder = module.split(".")[1] if "." in module else ""
    return LAYERS.index(folder) if folder in LAYERS else -1


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    whole = graph(root)
    imports = nx.DiGraph([(a, b) for a, b, data in whole.edges(data=True) if not data["annotation"]])
    upward = [(a, b) for a, b in imports.edges if layer(b) > layer(a) >= 0]
    print(f"{whole.number_of_nodes()} modules, {imports.number_of_edges()} arrows, ", end="")
    print(f"{whole.number_of_edges() - imports.number_of_edges()} more for annotations, {len(upward)} upward")
    for kind, edges in (("imports", imports), ("imports and annotations", whole)):
        circles = [sorted(c) for c in nx.strongly_connected_components(edges) if len(c) > 1]
        print(f"circles of {kind}: {len(circles)}" + "".join(f"\n  {', '.join(c)}" for c in circles))
    for name, count in sorted(whole.in_degree, key=lambda pair: -pair[1])[:8]:
        print(f"{count:>4} arrows to {name}")


if __name__ == "__main__":
    main()
